//! The pyramid of \[DyT\]'s dense tasks (BEiT's, arXiv 2106.08254): names `fpn1.0`, `fpn1.2`, `fpn2.0`.

use candle_core::{Result, Tensor};

use crate::ops::{self, Conv2d, NormRelu};
use crate::params::{Init, Scope};

/// Four taps of stride p → maps of strides p/4, p/2, p and 2p, all as wide as a token.
#[derive(Debug, Clone)]
pub struct DytPyramid {
    fpn1: [(Tensor, Tensor); 2],
    fpn2: (Tensor, Tensor),
}

/// A level of the pyramid, whose last step may still be to do.
#[derive(Debug, Clone)]
pub enum Level {
    /// `[B, C, h, w]`.
    Map(Tensor),
    /// The transposed convolution of `x` `[B, C, h/2, w/2]`.
    Deconvolution {
        /// What is to be enlarged.
        x: Tensor,
        /// `[C, C, 2, 2]`.
        weight: Tensor,
        /// `[C]`.
        bias: Tensor,
    },
}

impl Level {
    /// The level itself, `[B, C, h, w]`.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn map(&self) -> Result<Tensor> {
        match self {
            Self::Map(map) => Ok(map.clone()),
            Self::Deconvolution { x, weight, bias } => {
                ops::conv_transpose2x2(x, weight, Some(bias))
            }
        }
    }

    /// The level after the 1×1 convolution `mix` `[O, C, 1, 1]`, a batch norm and a ReLU: `[B, O, h, w]`. Where that saves
    /// arithmetic, the level is enlarged and mixed in one step.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn mixed_norm_relu(&self, mix: &Tensor, then: NormRelu) -> Result<Tensor> {
        if let Self::Deconvolution { x, weight, bias } = self {
            let (_, inputs, height, width) = x.dims4()?;
            let channels = [inputs, weight.dim(1)?, mix.dim(0)?];
            if ops::mixing_first_pays(height * width, channels) {
                let (weight, bias) = ops::mix_deconvolution(weight, bias, mix)?;
                return ops::conv_transpose2x2_norm_relu(x, &weight, &bias, then);
            }
        }
        ops::conv2d_norm_relu(&self.map()?, mix, Conv2d::default(), then)
    }
}

impl DytPyramid {
    /// Deconvolutions directly below `scope` (at the backbone's place, in the head's role).
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(dim: usize, scope: &Scope) -> Result<Self> {
        let up = |name: &str| -> Result<(Tensor, Tensor)> {
            let scope = scope.pp(name);
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
        self.levels(taps)?.iter().map(Level::map).collect()
    }

    /// [`Self::forward`] before the last step of each level.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn levels(&self, taps: &[Tensor; 4]) -> Result<[Level; 4]> {
        let up = |x: Tensor, (weight, bias): &(Tensor, Tensor)| Level::Deconvolution {
            x,
            weight: weight.clone(),
            bias: bias.clone(),
        };
        let [finest, fine, middle, coarse] = taps;
        let finest = ops::gelu(&up(finest.clone(), &self.fpn1[0]).map()?)?;
        Ok([
            up(finest, &self.fpn1[1]),
            up(fine.clone(), &self.fpn2),
            Level::Map(middle.clone()),
            Level::Map(ops::max_pool2d(coarse, 2, 2, 0)?),
        ])
    }
}
