//! From logits to the tokens that work.

use candle_core::{Result, Tensor, bail};

use super::gumbel::{gumbel_noise, noise_factor, straight_through};
use super::tome::Merger;
use super::{Dispatcher, KeptStats, LayerKept, Pass};
use crate::config::{DispatchConfig, Inference, Select, Variant};
use crate::rng::{Purpose, Rng};

/// The tokens that a branch works on.
#[derive(Debug)]
pub enum Active {
    /// All of them.
    All,
    /// 0 or 1 per token, `[B, N]` (prefix: 1): all are computed, the inactive results are dropped.
    Masked(Tensor),
    /// Rows of the flattened `[B·N, C]` tokens: only these are computed.
    Rows(Vec<u32>),
}

impl Active {
    /// The same of the first `count` tokens of every image of `x` `[B, N, C]`.
    pub(crate) fn first(self, count: usize, x: &Tensor) -> Result<Self> {
        let (tokens, count) = (x.dim(1)?, count as u32);
        Ok(match self {
            Self::All => Self::All,
            Self::Masked(mask) => Self::Masked(mask.narrow(1, 0, count as usize)?),
            Self::Rows(rows) => {
                let places = rows.iter().map(|row| (row / tokens as u32, row % tokens as u32));
                let first = places.filter(|&(_, token)| token < count);
                Self::Rows(first.map(|(image, token)| image * count + token).collect())
            }
        })
    }
}

/// Who passes a part of a block.
#[derive(Debug, Clone)]
pub enum Gate {
    /// Every token.
    Open,
    /// Those that a dispatcher chooses, or chance in its place.
    Scored(Dispatcher),
    /// Nobody: the part was pruned.
    Shut,
}

impl Gate {
    pub(crate) fn detached(&self) -> Self {
        match self {
            Self::Open => Self::Open,
            Self::Scored(dispatcher) => Self::Scored(dispatcher.detached()),
            Self::Shut => Self::Shut,
        }
    }
}

/// Decides in every block which tokens are active, and records it.
pub struct Selector<'a> {
    pass: &'a Pass<'a>,
    cfg: &'a DispatchConfig,
    thresholds: Vec<f32>,
    prefix: usize,
    merger: Option<Merger>,
    /// The grid of the patches, and the upper left part of it that is recorded.
    crop: Option<[(usize, usize); 2]>,
    /// Seeds of the random dispatcher at inference, one per image.
    images: Vec<u64>,
    /// Dispatchers that decided before this selector's first.
    before: usize,
    kept: KeptStats,
}

impl<'a> Selector<'a> {
    /// A selector for one forward pass; `thresholds` are the calibrated ones.
    pub fn new(
        pass: &'a Pass<'a>,
        cfg: &'a DispatchConfig,
        thresholds: Option<&'a [f32]>,
        prefix: usize,
    ) -> Self {
        Self {
            pass,
            cfg,
            thresholds: thresholds.unwrap_or_default().to_vec(),
            prefix,
            merger: cfg.tome.map(|tome| Merger::new(tome.r, prefix)),
            crop: None,
            images: Vec::new(),
            before: 0,
            kept: KeptStats::default(),
        }
    }

    /// The calibrated threshold of the next dispatcher that has none.
    pub(crate) fn add_threshold(&mut self, threshold: f32) {
        self.thresholds.push(threshold);
    }

    /// What merges tokens, where the config wants it.
    pub(crate) fn merger(&mut self) -> Option<&mut Merger> {
        self.merger.as_mut()
    }

    /// Records of patches on the grid `padded` only those on its upper left `grid`: the others are padding, which decides
    /// like the rest but counts nowhere.
    #[must_use]
    pub fn cropping(mut self, padded: (usize, usize), grid: (usize, usize)) -> Self {
        self.crop = (padded != grid).then_some([padded, grid]);
        self
    }

    /// Begins with the dispatcher that `before` others precede.
    #[must_use]
    pub(crate) fn after(mut self, before: usize) -> Self {
        self.before = before;
        self
    }

    /// How many dispatchers precede the next one.
    pub(crate) fn reached(&self) -> usize {
        self.before + self.kept.layers.len()
    }

    /// Records what another selector decided for the next dispatchers.
    pub(crate) fn record(&mut self, layers: impl IntoIterator<Item = LayerKept>) {
        self.kept.layers.extend(layers);
    }

    /// What the forward pass is for.
    pub fn pass(&self) -> &'a Pass<'a> {
        self.pass
    }

    /// Decides which of the tokens `x` `[B, prefix + P, C]` pass `gate`; by chance if the config says so.
    ///
    /// # Errors
    /// If the pass does not fit the tokens, or calibrated thresholds are wanted and missing.
    pub fn choose(&mut self, gate: &Gate, x: &Tensor) -> Result<Active> {
        if let (Gate::Open, _) | (_, Pass::Complete(_)) = (gate, self.pass) {
            return Ok(Active::All);
        }
        let logit = self.logits(gate, x)?;
        let mask = match gate {
            Gate::Scored(_) if !self.cfg.select.learns() => self.toss(&logit)?,
            Gate::Scored(_) => self.decide(&logit)?,
            Gate::Open | Gate::Shut => logit.zeros_like()?,
        };
        let active = match self.pass {
            Pass::Infer => Active::Rows(active_rows(&mask, self.prefix)?),
            _ => {
                let prefix =
                    Tensor::ones((mask.dim(0)?, self.prefix), mask.dtype(), mask.device())?;
                Active::Masked(Tensor::cat(&[&prefix, &mask], 1)?)
            }
        };
        self.kept.layers.push(LayerKept { mask: self.cropped(mask)?, logit: self.cropped(logit)? });
        Ok(active)
    }

    /// What `choose` would record as the logits of the patches of `x` `[B, prefix + P, C]`.
    pub(crate) fn recorded_logits(&self, gate: &Gate, x: &Tensor) -> Result<Tensor> {
        self.cropped(self.logits(gate, x)?)
    }

    /// `[B, P]`: −∞ for a part that nobody passes, 0 where there is nothing to score.
    fn logits(&self, gate: &Gate, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let same = |value: f64| {
            let shape = (batch, tokens - self.prefix);
            Tensor::full(value as f32, shape, x.device())?.to_dtype(x.dtype())
        };
        match (gate, self.cfg.select) {
            (Gate::Shut, _) => same(f64::NEG_INFINITY),
            (Gate::Open, _) | (Gate::Scored(_), Select::Random | Select::RandomSample) => same(0.0),
            (Gate::Scored(dispatcher), Select::Learned) => dispatcher.logits(x, self.prefix),
            (Gate::Scored(dispatcher), Select::Sample) => {
                // The score is linear: the mean of the tokens' scores is that of their mean.
                let logit = dispatcher.logits(x, self.prefix)?;
                logit.mean_keepdim(1)?.broadcast_as(logit.shape())?.contiguous()
            }
        }
    }

    /// What is recorded of `[B, P]`.
    fn cropped(&self, values: Tensor) -> Result<Tensor> {
        let Some([padded, grid]) = self.crop else { return Ok(values) };
        let batch = values.dim(0)?;
        let values = values.reshape((batch, padded.0, padded.1))?;
        let values = values.narrow(1, 0, grid.0)?.narrow(2, 0, grid.1)?.contiguous()?;
        values.reshape((batch, grid.0 * grid.1))
    }

    /// Who worked where.
    pub fn finish(self) -> KeptStats {
        self.kept
    }

    fn decide(&self, logit: &Tensor) -> Result<Tensor> {
        let layer = self.reached();
        match self.pass {
            Pass::Train(ctx) => {
                let factor = noise_factor(self.cfg.noise, ctx.progress);
                let noise = gumbel_noise(logit, ctx, layer as u16, (self.cfg.select, factor))?;
                straight_through(logit, &noise, self.cfg.tau_at(ctx.progress))
            }
            Pass::GivenNoise { noise, tau } => match noise.get(layer) {
                Some(noise) => straight_through(logit, noise, *tau),
                None => bail!(
                    "noise is given for {} dispatchers, dispatcher {layer} has none",
                    noise.len()
                ),
            },
            Pass::Complete(_) | Pass::Infer | Pass::InferMasked => match self.cfg.inference {
                Inference::Threshold => above(logit, 0.0), // σ(logit) > 0.5
                Inference::TopK(share) => top_k(logit, share),
                Inference::Calibrated(_) => match self.thresholds.get(layer) {
                    Some(&threshold) => above(logit, threshold),
                    None => bail!(
                        "`dispatch.inference` is `calibrated`, but dispatcher {layer} has no threshold: \
                         calibrate on training images first"
                    ),
                },
            },
        }
    }

    /// A coin per token or per image instead of the `logit` `[B, P]`: the random dispatchers of \[DyT\] Table 7. In
    /// training they are keyed by the sample, at inference by the image's content, so that an image gets the same mask
    /// alone and in any batch.
    fn toss(&self, logit: &Tensor) -> Result<Tensor> {
        let (batch, patches) = logit.dims2()?;
        let unseeded = Rng::new(0);
        let (rng, keys, share) = match self.pass {
            Pass::Train(ctx) => (ctx.rng, ctx.samples, self.cfg.target_rate),
            _ => (&unseeded, self.images.as_slice(), inference_share(self.cfg)),
        };
        if keys.len() != batch {
            bail!(
                "a batch of {batch} images needs as many keys for its random dispatcher, got {}",
                keys.len()
            );
        }
        let layer = self.reached() as u16;
        let mut mask = Vec::with_capacity(batch * patches);
        for &key in keys {
            let mut stream = rng.stream(Purpose::RandomDispatch, key, layer);
            mask.extend(per_patch(self.cfg.select, patches, || f32::from(stream.chance(share))));
        }
        Tensor::from_vec(mask, (batch, patches), logit.device())?.to_dtype(logit.dtype())
    }

    /// Takes the keys of the random dispatcher at inference from the images `[B, 3, H, W]`; nothing otherwise.
    pub(crate) fn seed_random(&mut self, images: &Tensor) -> Result<()> {
        if !self.cfg.select.learns() && self.cfg.variant != Variant::None {
            let pixels = images
                .detach()
                .flatten_from(1)?
                .to_dtype(candle_core::DType::F32)?
                .to_vec2::<f32>()?;
            self.images = pixels.iter().map(|image| content_hash(image)).collect();
        }
        Ok(())
    }
}

/// The share that a random dispatcher keeps at inference.
fn inference_share(cfg: &DispatchConfig) -> f64 {
    match cfg.inference {
        Inference::Threshold => cfg.target_rate,
        Inference::TopK(share) | Inference::Calibrated(share) => share,
    }
}

/// A draw for each of an image's `patches`: one for all of them where `select` decides for whole images.
pub(super) fn per_patch(select: Select, patches: usize, mut draw: impl FnMut() -> f32) -> Vec<f32> {
    if select.by_sample() { vec![draw(); patches] } else { (0..patches).map(|_| draw()).collect() }
}

/// FNV-1a over the bits of the pixels.
fn content_hash(image: &[f32]) -> u64 {
    image.iter().fold(0xcbf2_9ce4_8422_2325, |hash, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
    })
}

fn above(logit: &Tensor, threshold: f32) -> Result<Tensor> {
    logit.detach().gt(f64::from(threshold))?.to_dtype(logit.dtype())
}

/// Per image the share `share` of its tokens with the highest logits; ties go to the lowest index.
fn top_k(logit: &Tensor, share: f64) -> Result<Tensor> {
    let (batch, patches) = logit.dims2()?;
    let kept = ((share * patches as f64).round() as usize).min(patches);
    let mut mask = vec![0f32; batch * patches];
    let rows = logit.detach().to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
    for (row, mask) in rows.iter().zip(mask.chunks_mut(patches)) {
        let mut order: Vec<usize> = (0..patches).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a])); // stable: equal logits stay in index order
        order[..kept].iter().for_each(|&token| mask[token] = 1.0);
    }
    Tensor::from_vec(mask, (batch, patches), logit.device())?.to_dtype(logit.dtype())
}

/// The flat rows of `[B, prefix + P]` tokens that are active: every prefix token and the patches with mask 1.
fn active_rows(mask: &Tensor, prefix: usize) -> Result<Vec<u32>> {
    let masks = mask.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
    let mut rows = Vec::new();
    for (image, mask) in masks.iter().enumerate() {
        let first = image * (prefix + mask.len());
        rows.extend((first..first + prefix).map(|row| row as u32));
        rows.extend(
            (0..mask.len())
                .filter(|&token| mask[token] > 0.5)
                .map(|token| (first + prefix + token) as u32),
        );
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn top_k_breaks_ties_by_index() -> Result<()> {
        let logit = Tensor::new(&[[1.0f32, 3.0, 1.0, 1.0], [0.0, -1.0, -1.0, 5.0]], &Device::Cpu)?;
        assert_eq!(
            top_k(&logit, 0.5)?.to_vec2::<f32>()?,
            [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
        );
        assert_eq!(top_k(&logit, 0.0)?.sum_all()?.to_scalar::<f32>()?, 0.0);
        assert_eq!(top_k(&logit, 1.0)?.sum_all()?.to_scalar::<f32>()?, 8.0);
        Ok(())
    }

    #[test]
    fn the_first_tokens_are_as_active_as_before() -> Result<()> {
        // Two images of 1 + 3 tokens.
        let x = Tensor::zeros((2, 4, 1), candle_core::DType::F32, &Device::Cpu)?;
        let mask = Tensor::new(&[[1.0f32, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]], &Device::Cpu)?;
        let Active::Masked(first) = Active::Masked(mask).first(2, &x)? else { panic!() };
        assert_eq!(first.to_vec2::<f32>()?, [[1.0, 0.0], [1.0, 1.0]]);
        let Active::Rows(rows) = Active::Rows(vec![0, 2, 3, 4, 5]).first(2, &x)? else { panic!() };
        assert_eq!(rows, [0, 2, 3]);
        Ok(())
    }

    #[test]
    fn rows_count_through_the_batch_with_every_prefix_token() -> Result<()> {
        let mask = Tensor::new(&[[0.0f32, 1.0], [1.0, 0.0]], &Device::Cpu)?;
        // Two images of 1 + 2 tokens: rows 0 and 3 are class tokens.
        assert_eq!(active_rows(&mask, 1)?, [0, 2, 3, 4]);
        Ok(())
    }
}
