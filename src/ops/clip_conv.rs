//! Depthwise convolution over frames, rows and columns of patch tokens.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::host::{slice, values};
use super::rows::{for_row_blocks, sum_rows};
use super::vector::vectorised;
use super::{count, fusible};
use crate::backbone::TokenGrid;

/// y(t, i, j) = bias + Σ weight(a, b, c) · x(t + a − A, i + b − B, j + c − C) per channel, with zeros outside the clip and
/// the grid, and A, B, C the halves of the odd kernel; `x`: `[B·T, P, d]` on `places`, `weight`: `[d, 1, t, h, w]`, `bias`:
/// `[d]` → `[B·T, P, d]`.
///
/// # Errors
/// If the shapes do not agree.
pub fn clip_conv(x: &Tensor, weight: &Tensor, bias: &Tensor, places: TokenGrid) -> Result<Tensor> {
    let (images, patches, width) = x.dims3()?;
    let (channels, one, time, height, breadth) = weight.dims5()?;
    if (channels, one) != (width, 1) || [time, height, breadth].iter().any(|side| side % 2 == 0) {
        bail!("clip_conv: a weight {:?} does not fit {width} channels", weight.dims());
    }
    places.clips("clip_conv", images, patches)?;
    let kernel = [time, height, breadth];
    let taps = weight.reshape((width, time * height * breadth))?.t()?.contiguous()?; // [taps, d]
    if fusible(&[x, &taps, bias]) {
        let op = Fused { places, kernel };
        return x.contiguous()?.apply_op3(&taps, &bias.contiguous()?, op);
    }
    composed(x, &taps, bias, places, kernel)
}

/// A product with a row for each of the `taps`.
fn composed(
    x: &Tensor,
    taps: &Tensor,
    bias: &Tensor,
    TokenGrid { grid: (rows, columns), frames }: TokenGrid,
    [time, height, breadth]: [usize; 3],
) -> Result<Tensor> {
    let (images, patches, width) = x.dims3()?;
    let (halves, shape) = ([time / 2, height / 2, breadth / 2], [frames, rows, columns]);
    let mut padded = x.reshape((images / frames, frames, rows, columns, width))?;
    for (axis, half) in halves.into_iter().enumerate().filter(|(_, half)| *half > 0) {
        padded = padded.pad_with_zeros(axis + 1, half, half)?;
    }
    let mut y = bias.broadcast_as((images / frames, frames, rows, columns, width))?;
    for tap in 0..time * height * breadth {
        let mut part = padded.clone();
        for (axis, start) in in_kernel(tap, [time, height, breadth]).into_iter().enumerate() {
            part = part.narrow(axis + 1, start, shape[axis])?;
        }
        y = (y + part.broadcast_mul(&taps.get(tap)?)?)?;
    }
    y.reshape((images, patches, width))
}

/// Frame, row and column of `tap` in a kernel.
fn in_kernel(tap: usize, [_, height, breadth]: [usize; 3]) -> [usize; 3] {
    [tap / (height * breadth), tap / breadth % height, tap % breadth]
}

/// Row by row, a row being a patch of a frame.
struct Fused {
    places: TokenGrid,
    kernel: [usize; 3],
}

impl Fused {
    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// How far `tap` reaches from its patch: frames, rows, columns.
    fn reach(&self, tap: usize) -> [isize; 3] {
        let place = in_kernel(tap, self.kernel);
        std::array::from_fn(|axis| place[axis] as isize - (self.kernel[axis] / 2) as isize)
    }

    /// y\[row\] += Σ tap · x\[the row that is `direction` times the tap's reach away\].
    fn add_taps(&self, x: &[f32], taps: &[f32], direction: isize, (first, y): (usize, &mut [f32])) {
        let width = taps.len() / self.taps();
        let reaches: Vec<_> =
            (0..self.taps()).map(|tap| self.reach(tap).map(|by| direction * by)).collect();
        vectorised(
            #[inline(always)]
            || {
                for (row, y) in (first..).zip(y.chunks_exact_mut(width)) {
                    for (tap, by) in taps.chunks_exact(width).zip(&reaches) {
                        let Some(from) = self.places.moved(row, *by) else { continue };
                        let terms = tap.iter().zip(&x[from * width..][..width]);
                        y.iter_mut().zip(terms).for_each(|(y, (tap, x))| *y = tap.mul_add(*x, *y));
                    }
                }
            },
        );
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "clip_conv"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        taps: &CpuStorage,
        taps_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("clip_conv");
        let (x, taps, bias) =
            (slice(x, layout)?, slice(taps, taps_layout)?, slice(bias, bias_layout)?);
        let mut y = vec![0.0; x.len()];
        for_row_blocks(&mut y, bias.len(), |first, block| {
            block.chunks_exact_mut(bias.len()).for_each(|y| y.copy_from_slice(bias));
            self.add_taps(x, taps, 1, (first, block));
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        taps: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        count("clip_conv.backward");
        let grad = grad.contiguous()?;
        let (xs, tap_values, grads) = (values(x)?, values(taps)?, values(&grad)?);
        let (xs, tap_values, grads) = (&*xs, &*tap_values, &*grads);
        let width = bias.elem_count();
        let mut dx = vec![0.0; xs.len()];
        for_row_blocks(&mut dx, width, |first, block| {
            self.add_taps(grads, tap_values, -1, (first, block));
        });
        // The taps' sums and, last, that of the bias.
        let reaches: Vec<_> = (0..self.taps()).map(|tap| self.reach(tap)).collect();
        let mut sums = sum_rows(xs.len() / width, (reaches.len() + 1) * width, |rows, sums| {
            vectorised(
                #[inline(always)]
                || {
                    let (of_taps, of_bias) = sums.split_at_mut(reaches.len() * width);
                    for row in rows {
                        let grad = &grads[row * width..][..width];
                        of_bias.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g);
                        for (sums, by) in of_taps.chunks_exact_mut(width).zip(&reaches) {
                            let Some(from) = self.places.moved(row, *by) else { continue };
                            let terms = grad.iter().zip(&xs[from * width..][..width]);
                            sums.iter_mut()
                                .zip(terms)
                                .for_each(|(sum, (g, x))| *sum = g.mul_add(*x, *sum));
                        }
                    }
                },
            );
        });
        let dbias = sums.split_off(reaches.len() * width);
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
        Ok((Some(tensor(dx, x)?), Some(tensor(sums, taps)?), Some(tensor(dbias, bias)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

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
    fn fused_equals_composed() -> Result<()> {
        let places = TokenGrid { grid: (5, 4), frames: 3 };
        for (width, kernel) in [(96, [3, 1, 1]), (17, [3, 3, 3]), (8, [1, 5, 3])] {
            let taps = random(&[width, 1, kernel[0], kernel[1], kernel[2]], 2)?;
            let inputs = [random(&[12, 20, width], 1)?, taps, random(&[width], 3)?];
            assert_twins("clip_conv", 1e-5, &inputs, |t| clip_conv(&t[0], &t[1], &t[2], places))?;
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
