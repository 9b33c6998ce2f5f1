//! mmsegmentation's `cls_seg`: channel dropout and a 1×1 convolution, the end of every segmentation head.

use candle_core::{DType, Result, Tensor};
use rescatter::head::StepContext;
use rescatter::ops::{self, Conv2d};
use rescatter::params::{Init, Scope};
use rescatter::rng::Purpose;

/// torch's `Dropout2d`: a channel is dropped as a whole, since its neighbouring pixels say the same.
#[derive(Debug, Clone, Copy)]
pub struct Dropout2d {
    p: f64,
    layer: u16,
}

impl Dropout2d {
    /// In a decode head, with probability `p`. The layers of the random streams lie above those of any backbone.
    pub fn decode(p: f64) -> Self {
        Self { p, layer: 0x8000 }
    }

    /// In an auxiliary head, with probability `p`.
    pub fn auxiliary(p: f64) -> Self {
        Self { p, layer: 0x8001 }
    }

    /// `map`: `[B, C, h, w]`; itself unless a training context is given.
    ///
    /// # Errors
    /// If the context does not name one sample per row.
    pub fn forward(&self, map: &Tensor, ctx: Option<&StepContext>) -> Result<Tensor> {
        let Some(ctx) = ctx.filter(|ctx| ctx.training && self.p > 0.0) else {
            return Ok(map.clone());
        };
        let (b, c, _, _) = map.dims4()?;
        let stream = |&sample| ctx.rng.stream(Purpose::Dropout, sample, self.layer);
        let mut streams: Vec<_> = ctx.samples.iter().map(stream).collect();
        let ones = Tensor::ones((b, c), DType::F32, map.device())?;
        let factors = ops::dropout(&ones, self.p, &mut streams)?.to_dtype(map.dtype())?;
        map.broadcast_mul(&factors.reshape((b, c, 1, 1))?)
    }
}

/// Channel dropout, then one score per class (`conv_seg`).
#[derive(Debug)]
pub struct PixelClassifier {
    dropout: Dropout2d,
    weight: Tensor,
    bias: Tensor,
}

impl PixelClassifier {
    /// From `input` channels to `classes`; `scope` is that of the head.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        (input, classes): (usize, usize),
        dropout: Dropout2d,
        scope: &Scope,
    ) -> Result<Self> {
        let scope = scope.pp("conv_seg");
        let weight = scope.param("weight", (classes, input, 1, 1), Init::KaimingUniform)?;
        Ok(Self { dropout, weight, bias: scope.param("bias", classes, Init::Const(0.0))? })
    }

    /// `map`: `[B, input, h, w]` → logits `[B, K, h, w]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, map: &Tensor, ctx: Option<&StepContext>) -> Result<Tensor> {
        ops::conv2d(
            &self.dropout.forward(map, ctx)?,
            &self.weight,
            Some(&self.bias),
            Conv2d::default(),
        )
    }
}
