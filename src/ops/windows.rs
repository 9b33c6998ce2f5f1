//! Cutting token grids into windows and putting them together again (ViTDet, arXiv 2203.16527, §3).

use candle_core::{Result, Tensor};

/// Tokens `[B, h·w, C]` of grids (h, w) → windows `[B · n, size², C]` from left to right and top to bottom; zeros where a
/// window reaches over the right or lower edge.
///
/// # Errors
/// If the tokens are not those of the grids, or `size` is 0.
pub fn window_partition(
    x: &Tensor,
    (height, width): (usize, usize),
    size: usize,
) -> Result<Tensor> {
    let (batch, _, channels) = x.dims3()?;
    let (rows, columns) = windows(height, width, size)?;
    x.reshape((batch, height, width, channels))?
        .pad_with_zeros(1, 0, rows * size - height)?
        .pad_with_zeros(2, 0, columns * size - width)?
        .contiguous()?
        .reshape(&[batch, rows, size, columns, size, channels][..])?
        .permute(vec![0, 1, 3, 2, 4, 5])? // [B, rows, columns, size, size, C]
        .reshape((batch * rows * columns, size * size, channels))
}

/// What [`window_partition`] cut, together again and without the padding: `[B · n, size², C]` → `[B, h·w, C]`.
///
/// # Errors
/// If the windows are not those of such grids, or `size` is 0.
pub fn window_unpartition(
    x: &Tensor,
    (height, width): (usize, usize),
    size: usize,
) -> Result<Tensor> {
    let (count, _, channels) = x.dims3()?;
    let (rows, columns) = windows(height, width, size)?;
    let batch = count / (rows * columns).max(1);
    x.reshape(&[batch, rows, columns, size, size, channels][..])?
        .permute(vec![0, 1, 3, 2, 4, 5])? // [B, rows, size, columns, size, C]
        .reshape((batch, rows * size, columns * size, channels))?
        .narrow(1, 0, height)?
        .narrow(2, 0, width)?
        .contiguous()?
        .reshape((batch, height * width, channels))
}

fn windows(height: usize, width: usize, size: usize) -> Result<(usize, usize)> {
    if size == 0 {
        candle_core::bail!("attention: a window of no tokens");
    }
    Ok((height.div_ceil(size), width.div_ceil(size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use candle_core::Device;

    #[test]
    fn windows_of_a_small_grid_by_hand() -> Result<()> {
        // 2 × 3 tokens under windows of 2 × 2: the second has one column of its own.
        let x = Tensor::arange(1f32, 7.0, &Device::Cpu)?.reshape((1, 6, 1))?;
        let windows = window_partition(&x, (2, 3), 2)?;
        assert_eq!(
            windows.squeeze(2)?.to_vec2::<f32>()?,
            [[1.0, 2.0, 4.0, 5.0], [3.0, 0.0, 6.0, 0.0]]
        );
        let back = window_unpartition(&windows, (2, 3), 2)?;
        assert_eq!(back.to_vec3::<f32>()?, x.to_vec3::<f32>()?);
        Ok(())
    }

    #[test]
    fn the_gradients_are_right() -> Result<()> {
        check(|t| window_partition(&t[0], (3, 5), 2), &[normal(&[2, 15, 3], 1)?])?;
        check(|t| window_unpartition(&t[0], (3, 5), 2), &[normal(&[12, 4, 3], 1)?])
    }
}
