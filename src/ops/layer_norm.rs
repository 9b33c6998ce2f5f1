//! Layer normalisation over the last axis.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, Device, Layout, Result, Shape, Tensor};

use super::host::{slice, values};
use super::rows::{for_row_blocks, sum_rows};
use super::vector::{sum_of, vectorised};
use super::{count, fusible, gpu};

/// (x − mean) / √(var + eps) · weight + bias over the last axis, variance with divisor C; `x`: `[…, C]`, weight and bias
/// `[C]`.
///
/// # Errors
/// If the widths do not agree.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] || bias.dims() != [width] {
        candle_core::bail!(
            "layer_norm: {width} channels, weight {:?}, bias {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if gpu::runs(&[x, weight, bias]) {
        return gpu::layer_norm(x, weight, bias, eps);
    }
    if fusible(&[x, weight, bias]) {
        let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
        return if weight.track_op() || bias.track_op() {
            x.apply_op3(&weight, &bias, Trained { eps: eps as f32 })
        } else {
            x.apply_op1(Frozen { weight, bias, eps: eps as f32 })
        };
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Mean and 1 / √(var + eps) of a row.
#[inline(always)]
pub(crate) fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let scale = 1.0 / x.len() as f32;
    let mean = sum_of(x, x, |v, _| v) * scale;
    let variance = sum_of(x, x, |v, _| (v - mean) * (v - mean)) * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// The affine part of a layer norm.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl Affine<'_> {
    /// Writes the normalised row.
    #[inline(always)]
    pub(crate) fn normalise(self, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = statistics(x, self.eps);
        for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(self.weight).zip(self.bias) {
            *y = ((x - mean) * scale).mul_add(w, b);
        }
    }

    /// Writes the gradient of a row `x` for the gradient `g` of its normalised form. The statistics are computed again:
    /// `x` must be read anyway.
    #[inline(always)]
    pub(crate) fn backward(self, x: &[f32], g: &[f32], dx: &mut [f32]) {
        let (mean, scale) = statistics(x, self.eps);
        for ((d, &g), &w) in dx.iter_mut().zip(g).zip(self.weight) {
            *d = g * w;
        }
        let count = 1.0 / x.len() as f32;
        let offset = sum_of(dx, dx, |d, _| d) * count;
        let slope = sum_of(dx, x, |d, x| d * ((x - mean) * scale)) * count;
        for (d, &x) in dx.iter_mut().zip(x) {
            *d = scale * (*d - offset - (x - mean) * scale * slope);
        }
    }
}

fn forward(x: &[f32], shape: &Shape, affine: Affine) -> (CpuStorage, Shape) {
    count("layer_norm");
    let width = affine.weight.len();
    let mut y = vec![0.0; x.len()];
    for_row_blocks(&mut y, width, |first, block| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in
                    block.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width))
                {
                    affine.normalise(x, y);
                }
            },
        );
    });
    (CpuStorage::F32(y), shape.clone())
}

fn input_gradient(x: &Tensor, grad: &Tensor, affine: Affine) -> Result<Tensor> {
    count("layer_norm.backward");
    let width = affine.weight.len();
    let mut dx = vec![0.0; x.elem_count()];
    let (xs, grads) = (values(x)?, values(grad)?);
    for_row_blocks(&mut dx, width, |first, block| {
        let (xs, grads) = (&xs[first * width..], &grads[first * width..]);
        vectorised(
            #[inline(always)]
            || {
                let rows = xs.chunks_exact(width).zip(grads.chunks_exact(width));
                for (dx, (x, g)) in block.chunks_exact_mut(width).zip(rows) {
                    affine.backward(x, g, dx);
                }
            },
        );
    });
    Tensor::from_vec(dx, x.shape(), &Device::Cpu)
}

/// Gradients of weight and bias, one after the other: Σ g · x̂ and Σ g over the rows.
fn affine_gradients(x: &Tensor, grad: &Tensor, width: usize, eps: f32) -> Result<Vec<f32>> {
    let (xs, grads) = (values(x)?, values(grad)?);
    Ok(sum_rows(xs.len() / width.max(1), 2 * width, |range, sums| {
        let (dw, db) = sums.split_at_mut(width);
        let span = range.start * width..range.end * width;
        vectorised(
            #[inline(always)]
            || {
                for (x, g) in
                    xs[span.clone()].chunks_exact(width).zip(grads[span].chunks_exact(width))
                {
                    let (mean, scale) = statistics(x, eps);
                    for (((dw, db), &x), &g) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(g) {
                        *dw += g * ((x - mean) * scale);
                        *db += g;
                    }
                }
            },
        );
    }))
}

struct Frozen {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, bias) = (values(&self.weight)?, values(&self.bias)?);
        Ok(forward(
            slice(x, layout)?,
            layout.shape(),
            Affine { weight: &weight, bias: &bias, eps: self.eps },
        ))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (weight, bias) = (values(&self.weight)?, values(&self.bias)?);
        input_gradient(
            x,
            &grad.contiguous()?,
            Affine { weight: &weight, bias: &bias, eps: self.eps },
        )
        .map(Some)
    }
}

struct Trained {
    eps: f32,
}

impl CustomOp3 for Trained {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let affine = Affine { weight: slice(w, lw)?, bias: slice(b, lb)?, eps: self.eps };
        Ok(forward(slice(x, lx)?, lx.shape(), affine))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = if x.track_op() {
            let (weight, bias) = (values(weight)?, values(bias)?);
            Some(input_gradient(x, &grad, Affine { weight: &weight, bias: &bias, eps: self.eps })?)
        } else {
            None
        };
        let width = weight.elem_count();
        let sums = affine_gradients(x, &grad, width, self.eps)?;
        let part = |tensor: &Tensor, from: usize| {
            tensor
                .track_op()
                .then(|| Tensor::new(&sums[from..from + width], &Device::Cpu))
                .transpose()
        };
        Ok((dx, part(weight, 0)?, part(bias, width)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn a_row_by_hand() -> Result<()> {
        // Mean 2, variance (1 + 0 + 1) / 3, so x̂ = ±√1.5 and 0.
        let x = Tensor::new(&[[1f32, 2.0, 3.0]], &Device::Cpu)?;
        let w = Tensor::new(&[2f32, 2.0, 2.0], &Device::Cpu)?;
        let b = Tensor::new(&[0f32, 1.0, 1.0], &Device::Cpu)?;
        let y = layer_norm(&x, &w, &b, 0.0)?.to_vec2::<f32>()?;
        let expected = [-2.0 * 1.5f32.sqrt(), 1.0, 1.0 + 2.0 * 1.5f32.sqrt()];
        assert!(y[0].iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?}");
        Ok(())
    }

    #[test]
    fn the_composed_gradient_is_right() -> Result<()> {
        let f = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], 1e-6);
        check(f, &[normal(&[2, 3, 5], 1)?, normal(&[5], 2)?, normal(&[5], 3)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // Sums of up to 394 rows in another order.
        for (tokens, width) in [(197, 768), (325, 384), (3, 5)] {
            let inputs =
                [random(&[2, tokens, width], 1)?, random(&[width], 2)?, random(&[width], 3)?];
            assert_twins("layer_norm", 2e-6, &inputs, |t| layer_norm(&t[0], &t[1], &t[2], 1e-6))?;
            let (w, b) = (inputs[1].clone(), inputs[2].clone());
            assert_twins("layer_norm", 2e-6, &inputs[..1], |t| layer_norm(&t[0], &w, &b, 1e-6))?;
        }
        Ok(())
    }
}
