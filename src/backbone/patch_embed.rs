//! Images to patch tokens: a convolution whose kernel is its stride, computed as one matrix product.

use candle_core::{Result, Tensor};

use crate::ops;
use crate::params::{Init, Scope};
use crate::tuning::Pair;

/// The projection of patches, `proj`.
#[derive(Debug, Clone)]
pub(super) struct PatchEmbed {
    /// Weight `[C, 3, p, p]` and bias.
    pub(super) proj: Pair,
    patch: usize,
}

impl PatchEmbed {
    pub(super) fn new(patch: usize, dim: usize, scope: &Scope) -> Result<Self> {
        let proj = scope.pp("proj");
        let weight = proj.param("weight", (dim, 3, patch, patch), Init::KaimingUniform)?;
        Ok(Self { proj: (weight, proj.param("bias", dim, Init::Const(0.0))?), patch })
    }

    /// The same projection with another weight and bias.
    pub(super) fn with(&self, proj: Pair) -> Self {
        Self { proj, ..*self }
    }

    /// `[B, 3, H, W]` with H and W multiples of the patch → tokens `[B, P, C]` row by row, and the grid (h, w).
    pub(super) fn forward(&self, images: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let (batch, channels, height, width) = images.dims4()?;
        let (p, h, w) = (self.patch, height / self.patch, width / self.patch);
        let patches = images
            .reshape(&[batch, channels, h, p, w, p][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])? // [B, h, w, 3, p, p]
            .reshape((batch, h * w, channels * p * p))?;
        let weight = self.proj.0.flatten_from(1)?;
        Ok((ops::linear(&patches, &weight, Some(&self.proj.1))?, (h, w)))
    }
}
