//! Position embeddings for other grids than the stored one.

use candle_core::{Result, Tensor, bail};

use crate::ops::{self, Interpolation};

/// `pos` `[1, prefix + rows·columns, C]` of the grid `from` → that of the grid `to`: the grid part by bicubic
/// interpolation (a = −0.75, half-pixel centres, no antialiasing), the prefix as it is.
///
/// # Errors
/// If `pos` does not hold `prefix` rows and the grid `from`.
pub fn resize_pos_embed(
    pos: &Tensor,
    prefix: usize,
    from: (usize, usize),
    to: (usize, usize),
) -> Result<Tensor> {
    let (_, rows, dim) = pos.dims3()?;
    if rows != prefix + from.0 * from.1 {
        bail!(
            "a position embedding of {rows} rows does not fit {prefix} prefix tokens and a grid of {from:?}"
        );
    }
    if from == to {
        return Ok(pos.clone());
    }
    let grid = pos.narrow(1, prefix, from.0 * from.1)?.transpose(1, 2)?.contiguous()?;
    let grid = grid.reshape((1, dim, from.0, from.1))?;
    let grid = ops::resize(&grid, to, Interpolation::Bicubic { align_corners: false })?;
    let grid = grid.reshape((1, dim, to.0 * to.1))?.transpose(1, 2)?.contiguous()?;
    if prefix == 0 { Ok(grid) } else { Tensor::cat(&[&pos.narrow(1, 0, prefix)?, &grid], 1) }
}
