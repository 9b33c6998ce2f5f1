//! Depthwise convolution over frames, rows and columns of patch tokens.

use candle_core::{Result, Tensor, bail};

use crate::backbone::TokenGrid;

/// y(t, i, j) = bias + Σ weight(a, b, c) · x(t + a − A, i + b − B, j + c − C) per channel, with zeros outside the clip and
/// the grid, and A, B, C the halves of the odd kernel; `x`: `[B·T, P, d]` on `places`, `weight`: `[d, 1, t, h, w]`, `bias`:
/// `[d]` → `[B·T, P, d]`.
///
/// A product with a row per place of the kernel: three for a kernel over time alone, on the narrow width of a bottleneck.
///
/// # Errors
/// If the shapes do not agree.
pub fn clip_conv(x: &Tensor, weight: &Tensor, bias: &Tensor, places: TokenGrid) -> Result<Tensor> {
    let (images, patches, width) = x.dims3()?;
    let TokenGrid { grid: (rows, columns), frames } = places;
    let (channels, one, time, height, breadth) = weight.dims5()?;
    if (channels, one) != (width, 1) || [time, height, breadth].iter().any(|side| side % 2 == 0) {
        bail!("clip_conv: a weight {:?} does not fit {width} channels", weight.dims());
    }
    if frames == 0 || images % frames != 0 || patches != rows * columns {
        bail!("clip_conv: {images} × {patches} tokens do not lie on {places:?}");
    }
    let (halves, shape) = ([time / 2, height / 2, breadth / 2], [frames, rows, columns]);
    let mut padded = x.reshape((images / frames, frames, rows, columns, width))?;
    for (axis, half) in halves.into_iter().enumerate().filter(|(_, half)| *half > 0) {
        padded = padded.pad_with_zeros(axis + 1, half, half)?;
    }
    let taps = weight.reshape((width, time * height * breadth))?.t()?.contiguous()?; // [taps, d]
    let mut y = bias.broadcast_as((images / frames, frames, rows, columns, width))?;
    for tap in 0..time * height * breadth {
        let starts = [tap / (height * breadth), tap / breadth % height, tap % breadth];
        let mut part = padded.clone();
        for (axis, start) in starts.into_iter().enumerate() {
            part = part.narrow(axis + 1, start, shape[axis])?;
        }
        y = (y + part.broadcast_mul(&taps.get(tap)?)?)?;
    }
    y.reshape((images, patches, width))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::gradcheck::{check, normal};

    #[test]
    fn gradients_are_right() -> Result<()> {
        let places = TokenGrid { grid: (2, 3), frames: 3 };
        for kernel in [[3, 1, 1], [3, 3, 3]] {
            let weight = normal(&[2, 1, kernel[0], kernel[1], kernel[2]], 2)?;
            let inputs = [normal(&[6, 6, 2], 1)?, weight, normal(&[2], 3)?];
            check(|t| clip_conv(&t[0], &t[1], &t[2], places), &inputs)?;
        }
        Ok(())
    }

    #[test]
    fn it_sees_the_frames_of_its_own_clip_alone() -> Result<()> {
        // Two clips of two frames with one patch; the tap after the present frame counts 10, the one before it 100.
        let x = Tensor::new(&[[[1f32]], [[2.0]], [[3.0]], [[4.0]]], &Device::Cpu)?;
        let weight = Tensor::new(&[100f32, 1.0, 10.0], &Device::Cpu)?.reshape((1, 1, 3, 1, 1))?;
        let bias = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        let places = TokenGrid { grid: (1, 1), frames: 2 };
        let y = clip_conv(&x, &weight, &bias, places)?.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(y, [21.0, 102.0, 43.0, 304.0]);
        Ok(())
    }

    #[test]
    fn a_spatial_kernel_equals_a_convolution() -> Result<()> {
        let x = normal(&[2, 12, 3], 4)?.to_dtype(DType::F32)?;
        let weight = normal(&[3, 1, 1, 3, 3], 5)?.to_dtype(DType::F32)?;
        let bias = normal(&[3], 6)?.to_dtype(DType::F32)?;
        let y = clip_conv(&x, &weight, &bias, TokenGrid { grid: (3, 4), frames: 1 })?;
        let map = x.transpose(1, 2)?.reshape((2, 3, 3, 4))?;
        let want = map.conv2d(&weight.squeeze(2)?, 1, 1, 1, 3)?;
        let want = want.broadcast_add(&bias.reshape((1, 3, 1, 1))?)?.flatten_from(2)?;
        let worst = (y.transpose(1, 2)? - want)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(worst < 1e-5, "{worst}");
        Ok(())
    }
}
