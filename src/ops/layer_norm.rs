//! Layer normalisation over the last axis.

use candle_core::{D, Result, Tensor};

/// (x − mean) / √(var + eps) · weight + bias over the last axis, variance with divisor C; `x`: `[…, C]`, weight and bias
/// `[C]`.
///
/// # Errors
/// If the widths do not agree.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)
}
