//! What follows a convolution in a head.

use candle_core::{Result, Shape, Tensor};

use super::{BatchNorm, Folded, NormMode};
use crate::ops::activation::Activation;
use crate::ops::fresh::Fresh;
use crate::ops::host::values;
use crate::ops::resize::Resized;

/// A batch norm, a ReLU and, where there is one, the sum with a map that is resized to the same size (bilinear, corners not
/// aligned): `max(norm(x), 0) + resize_bilinear(map)`.
#[derive(Debug, Clone, Copy)]
pub struct NormRelu<'a> {
    norm: &'a BatchNorm,
    mode: NormMode,
    plus: Option<&'a Tensor>,
}

impl BatchNorm {
    /// The norm and a ReLU.
    pub fn relu(&self, mode: NormMode) -> NormRelu<'_> {
        NormRelu { norm: self, mode, plus: None }
    }
}

impl<'a> NormRelu<'a> {
    /// The same, added to `map` `[B, C, h, w]`.
    #[must_use]
    pub fn plus(self, map: &'a Tensor) -> Self {
        Self { plus: Some(map), ..self }
    }

    /// `x` `[B, C, H, W]` → the same shape.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`], and if the added map has other images or channels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.apply(x, self.mode, Activation::Relu, self.plus)
    }

    /// The norm as a factor and a summand for each of `channels`, where none of this nor `others`, what it is to be folded into, wants
    /// gradients; [`Self::folded_into`] has the values.
    pub(in crate::ops) fn folded(
        &self,
        channels: usize,
        others: &[&Tensor],
    ) -> Result<Option<Folded>> {
        let others: Vec<&Tensor> = others.iter().copied().chain(self.plus).collect();
        let folded = self.norm.folded(self.mode, &others)?;
        Ok(folded.filter(|folded| folded.scale.len() == channels))
    }

    /// The map whose values a convolution with the folded norm and the ReLU gave.
    pub(in crate::ops) fn folded_into(&self, mut y: Vec<f32>, shape: Shape) -> Result<Tensor> {
        if let Some(map) = self.plus {
            let map = map.contiguous()?;
            Resized::new(&map, &shape)?.add(&values(&map)?, &mut y);
        }
        Ok(Fresh::on_cpu(y, shape).tensor())
    }
}
