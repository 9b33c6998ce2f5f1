//! Softmax and its logarithm.

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result, Shape, Tensor};

use super::host::{slice, values};
use super::rows::for_row_blocks;
use super::vector::{exp, map_sum, max, sum_of, vectorised};
use super::{count, fusible, gpu};

/// Softmax over the last axis.
///
/// # Errors
/// If `x` has no axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if gpu::runs(&[x]) && x.elem_count() > 0 {
        return gpu::softmax(x);
    }
    if fusible(&[x]) && x.elem_count() > 0 {
        let width = x.dim(D::Minus1)?;
        return x.contiguous()?.apply_op1(Softmax { width });
    }
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

struct Softmax {
    width: usize,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("softmax");
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len()];
        for_row_blocks(&mut y, self.width, |first, block| {
            vectorised(
                #[inline(always)]
                || {
                    let xs = x[first * self.width..].chunks_exact(self.width);
                    for (y, x) in block.chunks_exact_mut(self.width).zip(xs) {
                        let largest = max(x);
                        y.copy_from_slice(x);
                        let scale = 1.0 / map_sum(y, |v| exp(v - largest));
                        y.iter_mut().for_each(|v| *v *= scale);
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("softmax.backward");
        let grad = grad.contiguous()?;
        let mut dx = vec![0.0; y.elem_count()];
        let (ys, grads) = (values(y)?, values(&grad)?);
        for_row_blocks(&mut dx, self.width, |first, block| {
            let (ys, grads) = (&ys[first * self.width..], &grads[first * self.width..]);
            vectorised(
                #[inline(always)]
                || {
                    let rows = ys.chunks_exact(self.width).zip(grads.chunks_exact(self.width));
                    for (dx, (y, g)) in block.chunks_exact_mut(self.width).zip(rows) {
                        let mean = sum_of(y, g, |y, g| y * g);
                        for ((d, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                            *d = y * (g - mean);
                        }
                    }
                },
            );
        });
        Tensor::from_vec(dx, y.shape(), &Device::Cpu).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        check(|t| softmax(&t[0]), &[normal(&[2, 3, 5], 1)?])?;
        check(|t| log_softmax(&t[0], 1), &[normal(&[2, 3, 5], 1)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for shape in [&[3, 5, 197][..], &[4, 325], &[2, 1], &[7]] {
            assert_twins("softmax", 2e-6, &[(random(shape, 1)? * 4.0)?], |t| softmax(&t[0]))?;
        }
        Ok(())
    }

    #[test]
    fn extreme_values_stay_finite() -> Result<()> {
        let x =
            Tensor::new(&[[1e4f32, -1e30, 1e4], [f32::NEG_INFINITY, 0.0, -200.0]], &Device::Cpu)?;
        let y = softmax(&x)?.to_vec2::<f32>()?;
        assert_eq!(y[0], [0.5, 0.0, 0.5].map(|v: f32| if v == 0.0 { y[0][1] } else { v }));
        assert!(
            y.iter().flatten().all(|v| v.is_finite())
                && y[0][1] < 1e-37
                && (y[1][1] - 1.0).abs() < 1e-7
        );
        Ok(())
    }
}
