//! Video classification: one class for a clip of T frames, whose tokens come as `[B·T, N, C]`.

mod query;
mod transformer;

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext, Term};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{Init, Scope};
use rescatter::rng::Purpose;

pub use query::{QueryPool, TemporalQueryConfig};
pub use transformer::{ClipTransformer, TemporalTransformerConfig};

use crate::HeadConfig;

/// The layer number of the head's dropout, after every block's.
const DROPOUT_LAYER: u16 = u16::MAX;

/// One vector per clip, and one linear layer with timm's name, `head`.
#[derive(Debug)]
pub struct TemporalHead {
    pool: Pool,
    dropout: f64,
    weight: Tensor,
    bias: Tensor,
}

/// From the tokens of a clip to its vector.
#[derive(Debug)]
enum Pool {
    Query(QueryPool),
    Transformer(ClipTransformer),
}

impl TemporalHead {
    /// For `classes` classes; the pooling's parameters are below `temporal_head` of `root`.
    ///
    /// # Errors
    /// If the section is another task's, or the scope holds one of the parameters with another shape.
    pub fn new(
        config: &HeadConfig,
        spec: &FeatureSpec,
        classes: usize,
        root: &Scope,
    ) -> Result<Self> {
        let scope = root.pp("temporal_head");
        let (pool, width, dropout) = match config {
            HeadConfig::TemporalQuery(config) => {
                let heads = config.num_heads.unwrap_or((spec.channels / 64).max(1));
                let pool = QueryPool::new(spec.channels, heads, &scope)?;
                (Pool::Query(pool), spec.channels, config.dropout)
            }
            HeadConfig::TemporalTransformer(config) => {
                let pool = ClipTransformer::new(config, spec.channels, &scope)?;
                (Pool::Transformer(pool), config.dim, config.dropout)
            }
            _ => bail!("`head.{}` does not classify clips", config.name()),
        };
        let scope = root.pp("head");
        let weight = scope.param("weight", (classes, width), Init::TruncatedNormal(0.02))?;
        Ok(Self { pool, dropout, weight, bias: scope.param("bias", classes, Init::Const(0.0))? })
    }

    /// Logits `[B, K]`; dropout while `ctx` trains.
    ///
    /// # Errors
    /// If the features are not those of whole clips of the length that the head is for.
    pub fn forward(&self, features: &Features, ctx: Option<&StepContext>) -> Result<Tensor> {
        let pooled = match &self.pool {
            Pool::Query(pool) => pool.forward(&features.tokens, features.frames)?,
            Pool::Transformer(pool) => pool.forward(features)?,
        };
        let pooled = match ctx.filter(|ctx| ctx.training && self.dropout > 0.0) {
            Some(ctx) => {
                let stream =
                    |sample: &u64| ctx.rng.stream(Purpose::Dropout, *sample, DROPOUT_LAYER);
                let mut streams: Vec<_> = ctx.samples.iter().map(stream).collect();
                ops::dropout(&pooled, self.dropout, &mut streams)?
            }
            None => pooled,
        };
        ops::linear(&pooled, &self.weight, Some(&self.bias))
    }
}

impl Head for TemporalHead {
    type Target = u32;
    /// Logits, one per class.
    type Prediction = Vec<f32>;

    fn losses(&self, features: &Features, targets: &[u32], ctx: &StepContext) -> Result<Losses> {
        let logits = self.forward(features, Some(ctx))?;
        let labels = Tensor::new(targets, logits.device())?;
        let options = CrossEntropy { ignore_index: u32::MAX, class_weights: None };
        let (sum, count) = ops::cross_entropy(&logits, &labels, &options)?;
        Ok(Losses {
            terms: vec![Term { name: "ce", weight: 1.0, sum, count }],
            logits: Some(logits),
        })
    }

    fn predict(&self, features: &Features, _clips: &[ImageMeta]) -> Result<Vec<Vec<f32>>> {
        self.forward(features, None)?.detach().to_vec2()
    }
}

/// `[B·T, N, C]` → B and T·N, if there are whole clips.
fn clips(tokens: &Tensor, frames: usize) -> Result<(usize, usize)> {
    let (images, tokens, _) = tokens.dims3()?;
    if frames == 0 || !images.is_multiple_of(frames) {
        bail!("{images} frames are no whole clips of {frames}");
    }
    Ok((images / frames, frames * tokens))
}
