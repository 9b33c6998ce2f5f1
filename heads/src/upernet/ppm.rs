//! Pyramid pooling (Zhao et al., *Pyramid Scene Parsing Network*, arXiv 1612.01105, §3.2), as mmsegmentation names it.

use candle_core::{Result, Tensor};
use rescatter::head::StepContext;
use rescatter::ops;
use rescatter::params::Scope;

use super::ConvModule;

/// The top map pooled to several grids, each mixed by a 1×1 convolution (`psp_modules.j.1`).
#[derive(Debug)]
pub struct PyramidPooling {
    scales: Vec<usize>,
    modules: Vec<ConvModule>,
}

impl PyramidPooling {
    /// One branch per pooling scale, from `input` to `output` channels; `scope` is that of `psp_modules`.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(scales: &[usize], (input, output): (usize, usize), scope: &Scope) -> Result<Self> {
        let modules = (0..scales.len())
            .map(|j| ConvModule::new((input, output), 1, &scope.pp(j).pp(1)))
            .collect::<Result<_>>()?;
        Ok(Self { scales: scales.to_vec(), modules })
    }

    /// `top`: `[B, input, h, w]` → one `[B, output, s, s]` per scale s, to be resized to the top's size.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, top: &Tensor, ctx: Option<&StepContext>) -> Result<Vec<Tensor>> {
        let branch = |(&scale, module): (&usize, &ConvModule)| {
            module.forward(&ops::adaptive_avg_pool2d(top, (scale, scale))?, ctx)
        };
        self.scales.iter().zip(&self.modules).map(branch).collect()
    }
}
