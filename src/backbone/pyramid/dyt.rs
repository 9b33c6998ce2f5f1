//! The pyramid of \[DyT\]'s dense tasks (BEiT's, arXiv 2106.08254): names `fpn1.0`, `fpn1.2`, `fpn2.0`.

use candle_core::{Result, Tensor};

use crate::ops;
use crate::params::{Init, Scope};

/// Four taps of stride p → maps of strides p/4, p/2, p and 2p, all as wide as a token.
#[derive(Debug, Clone)]
pub struct DytPyramid {
    fpn1: [(Tensor, Tensor); 2],
    fpn2: (Tensor, Tensor),
}

impl DytPyramid {
    /// Trainable deconvolutions directly below `scope` (the backbone's).
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(dim: usize, scope: &Scope) -> Result<Self> {
        let up = |name: &str| -> Result<(Tensor, Tensor)> {
            let scope = scope.trainable().pp(name);
            let bound = 1.0 / (4.0 * dim as f64).sqrt(); // torch's fan-in of a transposed convolution: out · 2 · 2
            Ok((
                scope.param("weight", (dim, dim, 2, 2), Init::KaimingUniform)?,
                scope.param("bias", dim, Init::Uniform(bound))?,
            ))
        };
        Ok(Self { fpn1: [up("fpn1.0")?, up("fpn1.2")?], fpn2: up("fpn2.0")? })
    }

    /// Taps `[B, C, h, w]` → `[B, C, 4h, 4w]`, `[B, C, 2h, 2w]`, `[B, C, h, w]`, `[B, C, ⌊h/2⌋, ⌊w/2⌋]`.
    ///
    /// # Errors
    /// If the taps do not have the width of the pyramid.
    pub fn forward(&self, taps: &[Tensor; 4]) -> Result<Vec<Tensor>> {
        let up = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| {
            ops::conv_transpose2x2(x, weight, Some(bias))
        };
        let finest = up(&ops::gelu(&up(&taps[0], &self.fpn1[0])?)?, &self.fpn1[1])?;
        Ok(vec![
            finest,
            up(&taps[1], &self.fpn2)?,
            taps[2].clone(),
            ops::max_pool2d(&taps[3], 2, 2, 0)?,
        ])
    }
}
