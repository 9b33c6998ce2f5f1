//! A backbone with a head and the parameters of both.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::backbone::{Features, Pass, Reads, Vit};
use crate::config::{Config, LossConfig};
use crate::dispatch::{KeptStats, distill_term, rate_term};
use crate::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext};
use crate::params::{ParamStore, Role, Scope};

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
    /// The model of `cfg` on `device`, initialised by `cfg.seed`; `reads` is what `build`'s head reads. `build`
    /// gets the root scope: a head names its own prefixes, a pyramid sits below `backbone`.
    ///
    /// # Errors
    /// If the sizes in `cfg` do not fit together or `build` fails.
    pub fn new<C>(
        cfg: &Config<C>,
        reads: &Reads,
        device: &Device,
        build: impl FnOnce(FeatureSpec, &Scope) -> Result<H>,
    ) -> Result<Self> {
        let params = ParamStore::new(device, DType::F32, cfg.seed);
        let root = params.root();
        let backbone =
            Vit::new(&cfg.backbone, &cfg.dispatch, &cfg.tuning, reads, &root.pp("backbone"))?
                .with_checkpoints(cfg.train.checkpoint_blocks);
        let head = build(backbone.spec(), &root)?;
        Ok(Self { backbone, head, params, loss: cfg.loss })
    }

    /// The losses of one batch `[B, 3, H, W]`, or `[B·T, 3, H, W]` where a sample is a clip of T frames (or of what the
    /// backbone gave for it before, pooled to `[B, 1, C]`): the head's terms, then `rate`, `complete.*` and `distill` as far as the
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
        let features = self.features(images, ctx, |ctx| Pass::Train(ctx))?;
        let mut losses = self.head.losses(&features, targets, ctx)?;
        let dispatch = self.backbone.dispatch();
        let mean_mask = match mean_mask {
            None if ctx.world.size > 1 => Some(features.kept.over_ranks(ctx.world)?),
            given => given,
        };
        // A random mask has no gradient, so its rate is no loss; nor has that of a model that tasks are added to.
        if self.loss.rate > 0.0 && self.backbone.dispatchers() > 0 && !self.backbone.is_extended() {
            losses.terms.extend(rate_term(
                &features.kept,
                dispatch.rate_at(ctx.progress),
                self.loss.rate,
                mean_mask,
            )?);
        }
        if self.loss.complete > 0.0 || self.loss.distill > 0.0 {
            self.add_complete(&mut losses, images, targets, ctx)?;
        }
        Ok((losses, features.kept))
    }

    /// What the backbone gives for images `[B, 3, H, W]`, or for clips `[B·T, 3, H, W]` of as many samples as `ctx` names. In
    /// the place of images there may be `[B, 1, C]`: what it gave before, pooled; that is right where nothing before the head
    /// is trained or drawn at random.
    fn features(
        &self,
        images: &Tensor,
        ctx: &StepContext,
        pass: for<'a> fn(&'a StepContext<'a>) -> Pass<'a>,
    ) -> Result<Features> {
        if images.rank() == 3 {
            return Ok(Features::of_pooled(images.clone()));
        }
        let frames = frames_per_clip(images, ctx.samples.len())?;
        let samples = frame_samples(ctx.samples, frames);
        let of_frames = StepContext { samples: &samples, ..*ctx };
        self.backbone.forward_clips(images, frames, &pass(&of_frames))
    }

    /// \[DyT\] §3.5: the same weights with every token active, as a second task and as the teacher.
    fn add_complete(
        &self,
        losses: &mut Losses,
        images: &Tensor,
        targets: &[H::Target],
        ctx: &StepContext,
    ) -> Result<()> {
        let features = self.features(images, ctx, |ctx| Pass::Complete(ctx))?;
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

    /// One prediction per image of the batch `[B, 3, H, W]`, or per clip of `[B·T, 3, H, W]`, without gradients, skipping what the dispatchers skip; and
    /// who worked where.
    ///
    /// # Errors
    /// If the images do not fit the model.
    pub fn predict(
        &self,
        images: &Tensor,
        metas: &[ImageMeta],
    ) -> Result<(Vec<H::Prediction>, KeptStats)> {
        let frames = frames_per_clip(images, metas.len())?;
        let features = self.backbone.forward_clips(images, frames, &Pass::Infer)?;
        Ok((self.head.predict(&features, metas)?, features.kept))
    }
}

impl<H> Model<H> {
    /// How many numbers the optimizer may change.
    pub fn trainable_count(&self) -> usize {
        self.params.trainable_count()
    }
}

/// How many numbers the optimizer may change, by what they belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedParts {
    /// The tuning method, and pretrained weights that are trained.
    pub method: usize,
    /// The token dispatchers.
    pub dispatchers: usize,
    /// The head and its pyramid.
    pub head: usize,
}

impl TrainedParts {
    /// Those of `params`.
    pub fn of(params: &ParamStore) -> Self {
        let mut parts = Self::default();
        for (name, var) in params.with_role(Role::Trainable) {
            let pyramid = ["fpn1.", "fpn2.", "simfp_"].iter().any(|part| name.contains(part));
            let part = match name.strip_prefix("backbone.") {
                Some(rest) if rest.contains("token_select.") => &mut parts.dispatchers,
                Some(_) if !pyramid => &mut parts.method,
                _ => &mut parts.head,
            };
            *part += var.elem_count();
        }
        parts
    }
}

impl Display for TrainedParts {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { method, dispatchers, head } = self;
        let all = method + dispatchers + head;
        write!(f, "{all} trained numbers (method {method}, dispatchers {dispatchers}, head {head})")
    }
}

/// T, where `images` `[B·T, 3, H, W]` are those of `clips` samples.
fn frames_per_clip(images: &Tensor, clips: usize) -> Result<usize> {
    let images = images.dim(0)?;
    if clips == 0 || !images.is_multiple_of(clips) {
        bail!("{images} images do not make {clips} samples");
    }
    Ok(images / clips)
}

/// A number of its own for every frame: the key of its noise, dropout and stochastic depth. Those of images are theirs.
fn frame_samples(samples: &[u64], frames: usize) -> Vec<u64> {
    let frames = frames as u64;
    samples.iter().flat_map(|sample| (0..frames).map(move |t| sample * frames + t)).collect()
}

/// Zeros right and below, so that `[B, C, H, W]` become at least `size` (height, width).
///
/// # Errors
/// If `images` has another rank.
pub fn pad_to(images: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = images.dims4()?;
    let (below, right) = (size.0.saturating_sub(height), size.1.saturating_sub(width));
    images.pad_with_zeros(2, 0, below)?.pad_with_zeros(3, 0, right)
}

/// The upper left `size` (height, width) of `[B, C, H, W]`: takes away what [`pad_to`] added.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Term;
    use crate::ops::{self, CrossEntropy};
    use crate::params::{Init, Role};
    use crate::rng::{Purpose, Rng};
    use crate::world::World;

    /// Three classes from the mean token.
    struct MeanToken {
        weight: Tensor,
    }

    impl Head for MeanToken {
        type Target = u32;
        type Prediction = u32;

        fn losses(
            &self,
            features: &Features,
            targets: &[u32],
            ctx: &StepContext,
        ) -> Result<Losses> {
            assert!(ctx.training);
            let logits = ops::linear(&features.tokens.mean(1)?, &self.weight, None)?;
            let labels = Tensor::new(targets, logits.device())?;
            let (sum, count) = ops::cross_entropy(&logits, &labels, &CrossEntropy::default())?;
            Ok(Losses {
                terms: vec![Term { name: "ce", weight: 1.0, sum, count }],
                logits: Some(logits),
            })
        }

        fn predict(&self, features: &Features, _: &[ImageMeta]) -> Result<Vec<u32>> {
            ops::linear(&features.tokens.mean(1)?, &self.weight, None)?.argmax(1)?.to_vec1()
        }
    }

    fn model(dispatch: &str, loss: &str) -> Model<MeanToken> {
        let split =
            "ade20k: { images: a, labels: b, classes: [x, y, z] }, transforms: [normalize: {}]";
        let text = format!(
            "task: segmentation
backbone: {{ embed_dim: 24, depth: 3, num_heads: 3, patch_size: 4, pos_embed_grid: [4, 4] }}
dispatch: {dispatch}
tuning: {{ adapter: {{ bottleneck: 4, scale: 0.5 }} }}
head: null
data: {{ train: {{ {split} }}, val: {{ {split} }} }}
loss: {loss}
train: {{ iterations: 1, batch_size: 1 }}"
        );
        let cfg: Config<()> = crate::config::load::parse(&text, "test.yaml".as_ref(), &[]).unwrap();
        let head = |spec: FeatureSpec, root: &Scope| {
            Ok(MeanToken {
                weight: root.param("head.weight", (3, spec.channels), Init::Normal(1.0))?,
            })
        };
        let model = Model::new(&cfg, &Reads::all(&[]), &Device::Cpu, head).unwrap();
        for (i, (name, var)) in model.params.with_role(Role::Trainable).into_iter().enumerate() {
            // Up-projections start at zero, where half of the gradients vanish.
            if name.contains("up_proj") {
                model.params.set(&name, &(normal(var.dims(), i as u64) * 0.1).unwrap()).unwrap();
            }
        }
        model
    }

    fn normal(shape: &[usize], seed: u64) -> Tensor {
        let mut stream = Rng::new(seed).stream(Purpose::Synthetic, 0, 0);
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn context<'a>(rng: &'a Rng, samples: &'a [u64]) -> StepContext<'a> {
        StepContext {
            training: true,
            update_stats: true,
            rng,
            step: 0,
            progress: 0.0,
            samples,
            world: &World::SINGLE,
        }
    }

    fn names(model: &Model<MeanToken>) -> Vec<&'static str> {
        let rng = Rng::new(1);
        let ctx = context(&rng, &[0, 1]);
        let (losses, _) = model.losses(&normal(&[2, 3, 16, 16], 3), &[0, 2], &ctx).unwrap();
        losses.terms.iter().map(|term| term.name).collect()
    }

    #[test]
    fn the_terms_are_those_that_the_config_wants() {
        let all = "{ rate: 2.0, complete: 1.0, distill: 1.0 }";
        assert_eq!(
            names(&model("{ variant: mlp }", all)),
            ["ce", "rate", "complete.ce", "distill"]
        );
        assert_eq!(names(&model("{ variant: mlp }", "{}")), ["ce", "rate"]);
        assert_eq!(names(&model("{ variant: mlp }", "{ rate: 0.0 }")), ["ce"]);
        assert_eq!(names(&model("{ variant: none }", "{}")), ["ce"]);
        assert_eq!(names(&model("{ variant: mlp, select: random }", "{}")), ["ce"]);
    }

    #[test]
    fn two_micro_batches_have_the_gradient_of_the_batch() -> Result<()> {
        let model = model("{ variant: mlp }", "{ rate: 2.0, complete: 1.0, distill: 1.0 }");
        let (rng, images, targets) = (Rng::new(1), normal(&[4, 3, 16, 16], 3), [0u32, 2, 1, 1]);
        let (losses, kept) = model.losses(&images, &targets, &context(&rng, &[5, 6, 7, 8]))?;
        let counts = losses.counts();
        let whole = losses.total(&counts)?.backward()?;
        let mean = kept.overall()?;
        let part = |first: usize, samples: &[u64]| -> Result<_> {
            let (images, targets) = (images.narrow(0, first, 2)?, &targets[first..first + 2]);
            let (losses, _) =
                model.losses_at(&images, targets, &context(&rng, samples), Some(mean))?;
            losses.total(&counts)?.backward()
        };
        let parts = [part(0, &[5, 6])?, part(2, &[7, 8])?];
        for (name, var) in model.params.with_role(Role::Trainable) {
            let grad = |grads: &candle_core::backprop::GradStore| grads.get(&var).unwrap().clone();
            let (want, got) = (grad(&whole), (grad(&parts[0]) + grad(&parts[1]))?);
            let largest = |t: Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
            let (size, difference) = (largest(want.clone())?, largest((got - want)?)?);
            assert!(
                size > 0.0 && difference <= 1e-5 * size.max(1e-2),
                "`{name}`: {difference:e} of {size:e}"
            );
        }
        Ok(())
    }

    #[test]
    fn predictions_skip_and_say_so() -> Result<()> {
        let model = model("{ variant: mlp, inference: { top_k: 0.25 } }", "{}");
        let size = (16, 16);
        let meta = ImageMeta { name: String::new(), original: size, input: size, flipped: false };
        let metas = [meta.clone(), meta];
        let (labels, kept) = model.predict(&normal(&[2, 3, 16, 16], 3), &metas)?;
        assert_eq!((labels.len(), kept.per_layer()?), (2, vec![0.25; 3]));
        Ok(())
    }

    #[test]
    fn padding_goes_right_and_below_and_is_cropped_again() -> Result<()> {
        let images = normal(&[1, 2, 5, 7], 3);
        let padded = pad_to(&images, (8, 8))?;
        assert_eq!(padded.dims(), [1, 2, 8, 8]);
        assert_eq!(padded.narrow(2, 5, 3)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        let back = crop(&padded, (5, 7))?;
        assert_eq!(back.flatten_all()?.to_vec1::<f32>()?, images.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
