//! The Gaussian error linear unit, in its exact (erf) form.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::host::{slice, values};
use super::rows::for_row_blocks;
use super::spent::spend;
use super::{count, fusible, gpu, vector};

/// x/2 · (1 + erf(x / √2)).
///
/// # Errors
/// If the type is not a floating-point type.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if gpu::runs(&[x]) {
        return gpu::gelu(x);
    }
    if fusible(&[x]) { x.contiguous()?.apply_op1(Gelu) } else { x.gelu_erf() }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("gelu");
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len()];
        for_row_blocks(&mut y, 1, |first, block| {
            vector::vectorised(
                #[inline(always)]
                || block.iter_mut().zip(&x[first..]).for_each(|(y, &x)| *y = vector::gelu(x)),
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        spend(y)?;
        count("gelu.backward");
        let grad = grad.contiguous()?;
        let mut dx = vec![0.0; x.elem_count()];
        let (xs, grads) = (values(x)?, values(&grad)?);
        for_row_blocks(&mut dx, 1, |first, block| {
            let (xs, grads) = (&xs[first..], &grads[first..]);
            vector::vectorised(
                #[inline(always)]
                || {
                    for ((d, &x), &g) in block.iter_mut().zip(xs).zip(grads) {
                        *d = g * vector::gelu_derivative(x);
                    }
                },
            );
        });
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn the_composed_gradient_is_right() -> Result<()> {
        check(|t| gelu(&t[0]), &[normal(&[7, 3], 1)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // The two error functions differ by up to 1.5e-7 and candle's derivative is itself rounded.
        for shape in [&[2, 197, 768][..], &[3, 11], &[40_001]] {
            assert_twins("gelu", 1e-6, &[(random(shape, 1)? * 3.0)?], |t| gelu(&t[0]))?;
        }
        Ok(())
    }
}
