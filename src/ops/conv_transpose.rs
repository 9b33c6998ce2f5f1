//! Transposed convolution with kernel 2 and stride 2: every pixel becomes a block of 2×2 pixels.

use candle_core::{Result, Tensor, bail};

/// Transposed convolution of `x` `[B, C, H, W]` with `weight` `[C, O, 2, 2]` and `bias` `[O]` → `[B, O, 2H, 2W]`.
///
/// The blocks do not overlap, so it is one product and a pixel shuffle.
///
/// # Errors
/// If the shapes do not fit together.
pub fn conv_transpose2x2(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, channels, _, _) = x.dims4()?;
    let (inputs, _, kh, kw) = weight.dims4()?;
    if inputs != channels || (kh, kw) != (2, 2) {
        bail!("conv_transpose2x2: weight {:?} does not fit a map {:?}", weight.dims(), x.dims());
    }
    let out = composed(x, weight)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

fn composed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let outputs = weight.dim(1)?;
    let rows = x.reshape((batch, channels, height * width))?;
    let weight = weight.reshape((channels, outputs * 4))?.t()?.contiguous()?;
    let out = weight.unsqueeze(0)?.broadcast_matmul(&rows)?;
    let out = out.reshape(vec![batch, outputs, 2, 2, height, width])?;
    out.permute(vec![0, 1, 4, 2, 5, 3])?.reshape((batch, outputs, 2 * height, 2 * width))
}
