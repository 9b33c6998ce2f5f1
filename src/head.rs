//! What a task adds to the backbone: the [`Head`] trait and the types that pass between the two.

use candle_core::{Result, Tensor};

use crate::backbone::Features;
use crate::rng::Rng;
use crate::world::World;

/// All that a head knows of the backbone when it is built.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureSpec {
    /// Width of a token, and so channels of every map.
    pub channels: usize,
    /// Pixels between neighbouring patch tokens.
    pub stride_px: f32,
}

/// What a forward pass must know besides its input.
#[derive(Debug, Clone, Copy)]
pub struct StepContext<'a> {
    /// Batch statistics, dropout and noise are used, gradients are wanted.
    pub training: bool,
    /// Running statistics are updated (not in a pass that only counts, nor in the complete model's).
    pub update_stats: bool,
    /// The run's generator.
    pub rng: &'a Rng,
    /// Optimizer steps done so far.
    pub step: u64,
    /// Share of the training that is done, in [0, 1].
    pub progress: f64,
    /// Numbers of this batch's samples in the whole run: the keys of its random streams.
    pub samples: &'a [u64],
    /// The processes that train together.
    pub world: &'a World,
}

impl<'a> StepContext<'a> {
    /// Of a pass that draws nothing and changes nothing, for `samples`.
    pub fn still(rng: &'a Rng, samples: &'a [u64]) -> Self {
        Self {
            training: false,
            update_stats: false,
            rng,
            step: 0,
            progress: 0.0,
            samples,
            world: &World::SINGLE,
        }
    }
}

/// One term of a loss: a sum over `count` things; the mean over all ranks and micro-batches is minimised.
#[derive(Debug, Clone)]
pub struct Term {
    /// What is logged, e.g. `decode.ce`.
    pub name: &'static str,
    /// Factor in the total.
    pub weight: f64,
    /// Scalar, tracked.
    pub sum: Tensor,
    /// How many things were summed (pixels, anchors, images).
    pub count: f64,
}

/// The named terms of a training step.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// In the order in which they are logged.
    pub terms: Vec<Term>,
    /// The class logits (classes on dimension 1) that a complete model may distil into this one.
    pub logits: Option<Tensor>,
}

impl Losses {
    /// Σ weight · sum / count, with each count replaced by `counts[i]` (the total over ranks and micro-batches).
    ///
    /// # Errors
    /// If there is no term or the terms do not agree in type.
    pub fn total(&self, counts: &[f64]) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (term, count) in self.terms.iter().zip(counts) {
            let part = (&term.sum * (term.weight / count.max(1.0)))?;
            total = Some(match total {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        total.ok_or_else(|| candle_core::Error::Msg("a head returned no loss".into()).bt())
    }

    /// The counts of this step alone.
    pub fn counts(&self) -> Vec<f64> {
        self.terms.iter().map(|term| term.count).collect()
    }
}

/// Where a prediction goes: an image's sizes on its way through the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageMeta {
    /// File name, for messages and results.
    pub name: String,
    /// Height and width of the file on disk, after its EXIF rotation.
    pub original: (usize, usize),
    /// Height and width that the transforms left, before padding to the patch size.
    pub input: (usize, usize),
    /// Whether the transforms mirrored it.
    pub flipped: bool,
}

/// A task's head on the shared backbone.
pub trait Head {
    /// What one image is trained towards.
    type Target;
    /// What comes out for one image.
    type Prediction;

    /// The losses of one batch.
    ///
    /// # Errors
    /// If features and targets do not fit together.
    fn losses(
        &self,
        features: &Features,
        targets: &[Self::Target],
        ctx: &StepContext,
    ) -> Result<Losses>;

    /// One prediction per image, without gradients.
    ///
    /// # Errors
    /// If features and images do not fit together.
    fn predict(&self, features: &Features, images: &[ImageMeta]) -> Result<Vec<Self::Prediction>>;
}
