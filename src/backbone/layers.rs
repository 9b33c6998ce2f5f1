//! The parameters of the two layers that a transformer consists of.

use candle_core::{Result, Tensor};

use crate::params::{Init, Scope};

/// ε of every layer norm in the backbone.
pub(super) const NORM_EPS: f64 = 1e-6;

/// Weight `[output, input]` and bias of a linear layer, initialised as timm does for ViTs.
pub(super) fn linear(input: usize, output: usize, scope: &Scope) -> Result<(Tensor, Tensor)> {
    let weight = scope.param("weight", (output, input), Init::TruncatedNormal(0.02))?;
    Ok((weight, scope.param("bias", output, Init::Const(0.0))?))
}

/// Weight and bias of a layer norm.
pub(super) fn layer_norm(dim: usize, scope: &Scope) -> Result<(Tensor, Tensor)> {
    Ok((scope.param("weight", dim, Init::Const(1.0))?, scope.param("bias", dim, Init::Const(0.0))?))
}

/// The factors of a branch (CaiT, arXiv 2103.17239), where blocks have them.
pub(super) fn layer_scale(dims: &super::Dims, scope: &Scope) -> Result<Option<Tensor>> {
    dims.layer_scale.then(|| scope.param("gamma", dims.dim, Init::Const(1e-5))).transpose()
}

/// The same pair without gradient, sharing its storage.
pub(crate) fn detached((weight, bias): &(Tensor, Tensor)) -> (Tensor, Tensor) {
    (weight.detach(), bias.detach())
}
