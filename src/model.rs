//! A backbone with a head and the parameters of both.

use std::collections::BTreeSet;
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::backbone::{Pass, Vit};
use crate::config::{Config, LossConfig};
use crate::dispatch::{KeptStats, distill_term, rate_term};
use crate::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext};
use crate::params::{ParamStore, Scope};

/// A backbone with a head.
pub struct Model<H> {
    /// The vision transformer; its parameters start with `backbone.`.
    pub backbone: Vit,
    /// The task's head.
    pub head: H,
    /// All parameters by their checkpoint names.
    pub params: ParamStore,
    /// Weights of the losses that the backbone adds.
    pub loss: LossConfig,
}

impl<H: Head> Model<H> {
    /// The model of `cfg` on `device`, initialised by `cfg.seed`; `taps` are the blocks that `build`'s head reads. `build`
    /// gets the root scope: a head names its own prefixes, a pyramid sits below `backbone`.
    ///
    /// # Errors
    /// If the sizes in `cfg` do not fit together or `build` fails.
    pub fn new<C>(
        cfg: &Config<C>,
        taps: &[usize],
        device: &Device,
        build: impl FnOnce(FeatureSpec, &Scope) -> Result<H>,
    ) -> Result<Self> {
        let params = ParamStore::new(device, DType::F32, cfg.seed);
        let root = params.root();
        let backbone =
            Vit::new(&cfg.backbone, &cfg.dispatch, &cfg.tuning, taps, &root.pp("backbone"))?;
        let head = build(backbone.spec(), &root)?;
        Ok(Self { backbone, head, params, loss: cfg.loss })
    }

    /// The losses of one batch `[B, 3, H, W]`: the head's terms, then `rate`, `complete.*` and `distill` as far as the
    /// config wants them; and who worked where. The rate is that of this batch alone.
    ///
    /// # Errors
    /// If images and targets do not fit the model.
    pub fn losses(
        &self,
        images: &Tensor,
        targets: &[H::Target],
        ctx: &StepContext,
    ) -> Result<(Losses, KeptStats)> {
        self.losses_at(images, targets, ctx, None)
    }

    /// [`Model::losses`] of a micro-batch, where `mean_mask` is the mean over all micro-batches and ranks of the step
    /// (see [`rate_term`]).
    ///
    /// # Errors
    /// If images and targets do not fit the model.
    pub fn losses_at(
        &self,
        images: &Tensor,
        targets: &[H::Target],
        ctx: &StepContext,
        mean_mask: Option<f64>,
    ) -> Result<(Losses, KeptStats)> {
        let features = self.backbone.forward(images, &Pass::Train(ctx))?;
        let mut losses = self.head.losses(&features, targets, ctx)?;
        let dispatch = self.backbone.dispatch();
        // A random mask has no gradient, so its rate is no loss.
        if self.loss.rate > 0.0 && self.backbone.dispatchers() > 0 {
            losses.terms.extend(rate_term(
                &features.kept,
                dispatch.target_rate,
                self.loss.rate,
                mean_mask,
            )?);
        }
        if self.loss.complete > 0.0 || self.loss.distill > 0.0 {
            self.add_complete(&mut losses, images, targets, ctx)?;
        }
        Ok((losses, features.kept))
    }

    /// [DyT] §3.5: the same weights with every token active, as a second task and as the teacher.
    fn add_complete(
        &self,
        losses: &mut Losses,
        images: &Tensor,
        targets: &[H::Target],
        ctx: &StepContext,
    ) -> Result<()> {
        let features = self.backbone.forward(images, &Pass::Complete(ctx))?;
        let complete =
            self.head.losses(&features, targets, &StepContext { update_stats: false, ..*ctx })?;
        if self.loss.complete > 0.0 {
            for mut term in complete.terms {
                term.name = complete_name(term.name);
                term.weight *= self.loss.complete;
                losses.terms.push(term);
            }
        }
        if self.loss.distill > 0.0 {
            let (Some(teacher), Some(student)) = (complete.logits, &losses.logits) else {
                bail!("`loss.distill` needs a head with class logits");
            };
            losses.terms.push(distill_term(&teacher, student, self.loss.distill)?);
        }
        Ok(())
    }

    /// One prediction per image of the batch `[B, 3, H, W]`, without gradients, skipping what the dispatchers skip; and
    /// who worked where.
    ///
    /// # Errors
    /// If the images do not fit the model.
    pub fn predict(
        &self,
        images: &Tensor,
        metas: &[ImageMeta],
    ) -> Result<(Vec<H::Prediction>, KeptStats)> {
        let features = self.backbone.forward(images, &Pass::Infer)?;
        Ok((self.head.predict(&features, metas)?, features.kept))
    }
}

impl<H> Model<H> {
    /// How many numbers the optimizer may change.
    pub fn trainable_count(&self) -> usize {
        self.params.trainable_count()
    }
}

/// Zeros right and below, so that height and width of `[B, C, H, W]` are multiples of `multiple`.
///
/// # Errors
/// If `images` has another rank.
pub fn pad_to_multiple(images: &Tensor, multiple: usize) -> Result<Tensor> {
    let (_, _, height, width) = images.dims4()?;
    let missing = |side: usize| side.next_multiple_of(multiple) - side;
    images.pad_with_zeros(2, 0, missing(height))?.pad_with_zeros(3, 0, missing(width))
}

/// The upper left `size` (height, width) of `[B, C, H, W]`: takes away what [`pad_to_multiple`] added.
///
/// # Errors
/// If the map is smaller.
pub fn crop(map: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    map.narrow(2, 0, size.0)?.narrow(3, 0, size.1)
}

/// `complete.<name>`. Names of terms live as long as the program; there are as many as heads have terms.
fn complete_name(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let full = format!("complete.{name}");
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = names.get(full.as_str()) {
        return known;
    }
    let leaked: &'static str = full.leak();
    names.insert(leaked);
    leaked
}
