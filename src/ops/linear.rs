//! The linear layer.

use candle_core::{Result, Tensor, bail};

/// `x · weightᵀ + bias`; `x`: `[…, in]`, `weight`: `[out, in]`, `bias`: `[out]` → `[…, out]`.
///
/// # Errors
/// If the widths do not agree.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, width) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == width => *last = out,
        _ => bail!("linear: an input {:?} does not fit a weight {:?}", x.dims(), weight.dims()),
    }
    let y = x.reshape(((), width))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}
