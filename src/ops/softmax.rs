//! Softmax and its logarithm.

use candle_core::{D, Result, Tensor};

/// Softmax over the last axis.
///
/// # Errors
/// If `x` has no axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    // The result does not depend on what is subtracted, so no gradient need pass through the maximum.
    let exp = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

/// ln softmax over axis `dim`.
///
/// # Errors
/// If there is no such axis.
pub fn log_softmax(x: &Tensor, dim: usize) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(dim)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(dim)?.log()?)
}
