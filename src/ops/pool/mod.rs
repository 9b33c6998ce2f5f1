//! Pooling of maps `[B, C, H, W]` with torch's conventions.

mod max;

use candle_core::{DType, Result, Tensor, bail};

use super::separable::{Axis, separable};
use super::{fusible, gpu};

/// The largest value of every window; padding counts as −∞, windows that do not fit are left out.
/// The gradient goes to the first of equal values. `padding` ≤ `kernel` / 2.
///
/// # Errors
/// If the windows do not fit the map.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if kernel * stride == 0 || padding > kernel / 2 || height.min(width) + 2 * padding < kernel {
        bail!(
            "max_pool2d: kernel {kernel}, stride {stride}, padding {padding} do not fit a map of {height}x{width}"
        );
    }
    let windows = Windows { kernel, stride, padding };
    if gpu::runs(&[x]) && x.elem_count() > 0 {
        let size = (windows.outputs(height), windows.outputs(width));
        return gpu::max_pool2d(x, size, (kernel, stride, padding));
    }
    if fusible(&[x]) && x.elem_count() > 0 {
        return x.contiguous()?.apply_op1(max::MaxPool(windows));
    }
    composed_max(x, &windows)
}

/// The mean of every window of `kernel` pixels; windows that do not fit are left out.
///
/// # Errors
/// If no window fits.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if kernel * stride == 0 || height.min(width) < kernel {
        bail!(
            "avg_pool2d: kernel {kernel} and stride {stride} do not fit a map of {height}x{width}"
        );
    }
    let windows = Windows { kernel, stride, padding: 0 };
    let axis =
        |n: usize| Axis::new(n, windows.outputs(n), |j| mean(j * stride, j * stride + kernel));
    separable(x, &axis(height), &axis(width))
}

/// The map as `size.0 × size.1` means: bin j of m covers the pixels ⌊j·n/m⌋ to ⌈(j + 1)·n/m⌉ − 1.
///
/// # Errors
/// If a side is 0.
pub fn adaptive_avg_pool2d(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if height * width * size.0 * size.1 == 0 {
        bail!("adaptive_avg_pool2d: cannot pool {height}x{width} to {}x{}", size.0, size.1);
    }
    let axis = |n: usize, m: usize| Axis::new(n, m, |j| mean(j * n / m, ((j + 1) * n).div_ceil(m)));
    separable(x, &axis(height, size.0), &axis(width, size.1))
}

fn mean(start: usize, end: usize) -> Vec<(usize, f64)> {
    (start..end).map(|input| (input, 1.0 / (end - start) as f64)).collect()
}

/// The windows of a pooling, the same along both axes.
#[derive(Debug, Clone, Copy)]
struct Windows {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Windows {
    fn outputs(&self, n: usize) -> usize {
        (n + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// For every tap the pixels that the outputs see through it. A tap in the padding sees the border pixel, which its
    /// window holds anyway.
    fn taps(&self, n: usize) -> Vec<u32> {
        let pixel = |tap: usize, output: usize| {
            ((output * self.stride + tap).saturating_sub(self.padding)).min(n - 1) as u32
        };
        (0..self.kernel)
            .flat_map(|tap| (0..self.outputs(n)).map(move |output| pixel(tap, output)))
            .collect()
    }
}

/// The position of the largest value of every window is found without tracking, its value is gathered with tracking:
/// the gradient of candle's own maximum goes to all equal values, that of its pooling is wrong.
fn composed_max(x: &Tensor, windows: &Windows) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (oh, ow, k) = (windows.outputs(height), windows.outputs(width), windows.kernel);
    let (rows, cols) = (windows.taps(height), windows.taps(width));
    let seen = x.detach().index_select(&Tensor::new(rows.as_slice(), x.device())?, 2)?;
    let seen = seen.index_select(&Tensor::new(cols.as_slice(), x.device())?, 3)?;
    let seen = seen
        .reshape(vec![batch, channels, k, oh, k, ow])?
        .permute(vec![0, 1, 3, 5, 2, 4])?
        .contiguous()?;
    let tap = seen.reshape((batch * channels * oh * ow, k * k))?.argmax_keepdim(1)?;
    let mut pixels = Vec::with_capacity(oh * ow * k * k);
    for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
        pixels
            .extend((0..k * k).map(|t| rows[t / k * oh + i] * width as u32 + cols[t % k * ow + j]));
    }
    let pixels = Tensor::from_vec(pixels, (1, oh * ow, k * k), x.device())?;
    let pixels = pixels.broadcast_as((batch * channels, oh * ow, k * k))?.reshape(((), k * k))?;
    let index =
        pixels.gather(&tap, 1)?.to_dtype(DType::U32)?.reshape((batch * channels, oh * ow))?;
    let flat = x.reshape((batch * channels, height * width))?;
    flat.gather(&index, 1)?.reshape((batch, channels, oh, ow))
}
