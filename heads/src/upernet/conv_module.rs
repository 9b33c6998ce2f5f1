//! mmcv's `ConvModule`: convolution without bias, batch norm, ReLU.
//!
//! Initial weights are torch's default, three to six times smaller than mmcv's (Kaiming-normal, fan out). After batch norm
//! only step over weight matters, so a head from mmcv's learns that much slower at the same rate (LOG.md, 2026-11-22).

use candle_core::{Result, Tensor};
use rescatter::backbone::pyramid::Level;
use rescatter::head::StepContext;
use rescatter::ops::{self, BatchNorm, Conv2d, NormMode};
use rescatter::params::{Init, Scope};

/// Convolution without bias (`conv`), batch norm (`bn`), ReLU; the size stays.
#[derive(Debug)]
pub struct ConvModule {
    weight: Tensor,
    bn: BatchNorm,
    padding: usize,
}

impl ConvModule {
    /// From `input` to `output` channels with an odd square `kernel`.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new((input, output): (usize, usize), kernel: usize, scope: &Scope) -> Result<Self> {
        let weight = scope.pp("conv").param(
            "weight",
            (output, input, kernel, kernel),
            Init::KaimingUniform,
        )?;
        Ok(Self { weight, bn: BatchNorm::new(output, &scope.pp("bn"))?, padding: kernel / 2 })
    }

    /// `x`: `[B, input, h, w]` → `[B, output, h, w]`. With a training context the batch's statistics are used.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, x: &Tensor, ctx: Option<&StepContext>) -> Result<Tensor> {
        let conv = Conv2d { padding: self.padding, ..Conv2d::default() };
        ops::conv2d_norm_relu(x, &self.weight, conv, self.bn.relu(NormMode::of(ctx)))
    }

    /// [`Self::forward`] of a level of the pyramid, plus `coarse` `[B, output, h′, w′]` at its size; the kernel is 1×1.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward_lateral(
        &self,
        level: &Level,
        coarse: &Tensor,
        ctx: Option<&StepContext>,
    ) -> Result<Tensor> {
        level.mixed_norm_relu(&self.weight, self.bn.relu(NormMode::of(ctx)).plus(coarse))
    }

    /// [`Self::forward`] of `parts` side by side, each `[B, Cᵢ, hᵢ, wᵢ]` resized to `size` first; the kernel is 3×3. Coarse
    /// parts mix their channels before they are resized, which gives the same for less (see [`ops::conv3x3_joined`]).
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward_joined(
        &self,
        parts: &[Tensor],
        size: (usize, usize),
        ctx: Option<&StepContext>,
    ) -> Result<Tensor> {
        let then = self.bn.relu(NormMode::of(ctx));
        ops::conv3x3_joined_norm_relu(parts, &self.weight, size, then)
    }
}
