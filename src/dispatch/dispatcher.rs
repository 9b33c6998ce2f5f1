//! The dispatcher's score of a token (\[DyT\] Eq. 3): name `mlp_head`.

use candle_core::{Result, Tensor};

use crate::ops;
use crate::params::{Init, Scope};

/// One linear layer from a token to its logit.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    weight: Tensor,
    bias: Tensor,
}

impl Dispatcher {
    /// `mlp_head` below `scope` (`blocks.i.mlp_token_select`), whose bias starts so that the share `rate` of the tokens is
    /// active under the noise of training: logit(rate).
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(dim: usize, rate: f64, scope: &Scope) -> Result<Self> {
        let scope = scope.pp("mlp_head");
        let weight = scope.param("weight", (1, dim), Init::TruncatedNormal(0.02))?;
        let bias = (rate / (1.0 - rate)).ln();
        Ok(Self { weight, bias: scope.param("bias", 1, Init::Const(bias))? })
    }

    pub(crate) fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach() }
    }

    /// Tokens `[B, prefix + P, C]` → logits `[B, P]`: prefix tokens are never scored.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn logits(&self, x: &Tensor, prefix: usize) -> Result<Tensor> {
        let logits = ops::linear(x, &self.weight, Some(&self.bias))?.squeeze(2)?;
        logits.narrow(1, prefix, logits.dim(1)? - prefix)?.contiguous()
    }
}
