//! mmcv's `ConvModule`: convolution without bias, batch norm, ReLU.
//!
//! Initial weights are torch's default, three to six times smaller than mmcv's (Kaiming-normal, fan out). After batch norm
//! only step over weight matters, so a head from mmcv's learns that much slower at the same rate (LOG.md, 2026-11-22).

use candle_core::{Result, Tensor, bail};
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
        self.bn.forward_relu(&ops::conv2d(x, &self.weight, None, conv)?, NormMode::of(ctx))
    }

    /// [`Self::forward`] of a level of the pyramid; the kernel is 1×1.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward_level(&self, level: &Level, ctx: Option<&StepContext>) -> Result<Tensor> {
        self.bn.forward_relu(&level.mixed(&self.weight)?, NormMode::of(ctx))
    }

    /// [`Self::forward`] of `parts` side by side, each `[B, Cᵢ, hᵢ, wᵢ]` resized to `size` first; the kernel is 3×3. Coarse
    /// parts mix their channels before they are resized, which gives the same for less (see
    /// [`ops::conv3x3_of_resized`]).
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward_joined(
        &self,
        parts: &[Tensor],
        size: (usize, usize),
        ctx: Option<&StepContext>,
    ) -> Result<Tensor> {
        let (mut first, mut sum) = (0, None::<Tensor>);
        for part in parts {
            let channels = part.dim(1)?;
            let weight = self.weight.narrow(1, first, channels)?;
            sum = Some(ops::conv3x3_of_resized(part, &weight, size, sum.as_ref())?);
            first += channels;
        }
        match sum {
            Some(sum) if first == self.weight.dim(1)? => {
                self.bn.forward_relu(&sum, NormMode::of(ctx))
            }
            _ => bail!("the parts have {first} channels in all, not {}", self.weight.dim(1)?),
        }
    }
}
