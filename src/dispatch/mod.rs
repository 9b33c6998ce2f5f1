//! Who works: the token dispatcher of \[DyT\] §3.3 and what follows from its decisions.

use candle_core::{Result, Tensor};
use ndarray::Array2;

use crate::head::StepContext;
use crate::world::World;

mod calibrate;
mod dispatcher;
mod distill;
pub mod flops;
mod gumbel;
mod rate;
mod select;
mod site;
mod tome;

pub use calibrate::{calibrate, calibrate_clips};
pub use dispatcher::Dispatcher;
pub use distill::distill_term;
pub use gumbel::{noise_factor, straight_through};
pub use rate::rate_term;
pub use select::{Active, Gate, Selector};
pub use site::Site;
pub(crate) use tome::{comparisons, tokens_left};

/// What a forward pass is for; decides how tokens are selected and whether gradients are kept.
#[derive(Debug, Clone, Copy)]
pub enum Pass<'a> {
    /// Noisy straight-through masks, dropout and stochastic depth.
    Train(&'a StepContext<'a>),
    /// Every token is active: the complete model of \[DyT\] §3.5, with dropout if the context trains.
    Complete(&'a StepContext<'a>),
    /// No gradients; skipped tokens are gathered away.
    Infer,
    /// Selected as in `Infer`, computed by masking as in training, gradients kept.
    InferMasked,
    /// Training with given noise per dispatcher, each `[B, P]`, without dropout: makes a step reproducible elsewhere.
    GivenNoise {
        /// G₁ − G₂ per dispatcher.
        noise: &'a [Tensor],
        /// τ.
        tau: f64,
    },
}

impl Pass<'_> {
    /// Whether gradients flow to the trainable parameters.
    pub(crate) fn tracks(&self) -> bool {
        !matches!(self, Pass::Infer)
    }
}

/// The decisions of every dispatcher in one forward pass, in the order of the blocks. Empty for the dense model.
#[derive(Debug, Clone, Default)]
pub struct KeptStats {
    /// One entry per dispatcher, named as [`crate::config::Variant::dispatcher_names`] says.
    pub layers: Vec<LayerKept>,
}

/// The decisions of one dispatcher.
#[derive(Debug, Clone)]
pub struct LayerKept {
    /// 0 or 1 per patch token, `[B, P]`; while training its gradient is that of the soft value.
    pub mask: Tensor,
    /// `[B, P]`, before noise.
    pub logit: Tensor,
}

impl KeptStats {
    /// The share of patch tokens that each dispatcher kept.
    ///
    /// # Errors
    /// If the masks cannot be read.
    pub fn per_layer(&self) -> Result<Vec<f64>> {
        self.layers
            .iter()
            .map(|layer| layer.mask.mean_all()?.to_scalar::<f32>().map(f64::from))
            .collect()
    }

    /// The share over all dispatchers; 1 for the dense model.
    ///
    /// # Errors
    /// If the masks cannot be read.
    pub fn overall(&self) -> Result<f64> {
        match self.mean_mask()? {
            Some(mean) => mean.to_scalar::<f32>().map(f64::from),
            None => Ok(1.0),
        }
    }

    /// [`KeptStats::overall`] of what all processes decided in one pass each.
    ///
    /// # Errors
    /// If the masks cannot be read, or the processes cannot talk to each other.
    pub fn over_ranks(&self, world: &World) -> Result<f64> {
        let decisions = self.decisions() as f64;
        let mut sums = [self.overall()? * decisions, decisions];
        world.sum(&mut sums)?;
        Ok(sums[0] / sums[1].max(1.0))
    }

    /// The mean mask over images, layers and patches, with its gradient; `None` for the dense model.
    ///
    /// # Errors
    /// If the masks do not fit together.
    pub fn mean_mask(&self) -> Result<Option<Tensor>> {
        if self.layers.is_empty() {
            return Ok(None);
        }
        let masks =
            self.layers.iter().map(|layer| layer.mask.flatten_all()).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&masks, 0)?.mean_all().map(Some)
    }

    /// How many decisions were made.
    pub fn decisions(&self) -> usize {
        self.layers.iter().map(|layer| layer.mask.elem_count()).sum()
    }

    /// Per image of the grid `grid`: how many dispatchers kept each patch.
    ///
    /// # Errors
    /// If the masks do not have the grid's size.
    pub fn token_map(&self, grid: (usize, usize)) -> Result<Vec<Array2<f32>>> {
        let Some(first) = self.layers.first() else { return Ok(Vec::new()) };
        let mut total = first.mask.detach();
        for layer in &self.layers[1..] {
            total = (total + layer.mask.detach())?;
        }
        let (height, width) = grid;
        let images = total.to_vec2::<f32>()?;
        let map = |counts: Vec<f32>| {
            Array2::from_shape_vec((height, width), counts).map_err(candle_core::Error::wrap)
        };
        images.into_iter().map(map).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn shares_and_token_maps_count_the_masks() -> Result<()> {
        let layer = |mask: &[[f32; 4]; 1]| -> Result<LayerKept> {
            let mask = Tensor::new(mask, &Device::Cpu)?;
            Ok(LayerKept { logit: mask.clone(), mask })
        };
        let kept =
            KeptStats { layers: vec![layer(&[[1., 1., 0., 1.]])?, layer(&[[0., 1., 0., 0.]])?] };
        assert_eq!(kept.per_layer()?, [0.75, 0.25]);
        assert_eq!(kept.overall()?, 0.5);
        assert_eq!(kept.token_map((2, 2))?, [ndarray::arr2(&[[1.0, 2.0], [0.0, 1.0]])]);
        assert_eq!(KeptStats::default().overall()?, 1.0);
        Ok(())
    }
}
