//! The linear layer.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::{slice, values};
use super::product::linear_product;
use super::rows::{for_row_blocks, sum_rows};
use super::{count, fusible};

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
    if bias.is_some_and(|bias| bias.dims() != [out]) {
        bail!(
            "linear: a bias {:?} does not fit a weight {:?}",
            bias.map(Tensor::dims),
            weight.dims()
        );
    }
    let rows = x.reshape(((), width))?;
    let y = if fusible(&[x, weight, bias.unwrap_or(weight)]) {
        fused(&rows, weight, bias)?
    } else {
        let y = linear_product(&rows, weight)?;
        match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        }
    };
    y.reshape(shape)
}

fn fused(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    match bias {
        // The weights sit inside the operation, so candle knows of no gradient for them.
        bias if !weight.track_op() && !bias.as_ref().is_some_and(Tensor::track_op) => {
            x.apply_op1(Frozen { weight, bias })
        }
        Some(bias) => x.apply_op3(&weight, &bias, Trained),
        None => x.apply_op2(&weight, Trained),
    }
}

/// `x · weightᵀ + bias` on the CPU, `x` `[rows, in]`.
pub(crate) fn product(x: &[f32], weight: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
    let (rows, out) = (x.len() / width.max(1), weight.len() / width.max(1));
    let mut y = vec![0.0; rows * out];
    // The bias takes the place of zeros, so it costs no pass of its own.
    if let Some(bias) = bias {
        for_row_blocks(&mut y, out, |_, block| {
            block.chunks_mut(out).for_each(|row| row.copy_from_slice(bias))
        });
    }
    let beta = if bias.is_some() { 1.0 } else { 0.0 };
    let (x, weight) = (Mat::new(x, rows, width), Mat::new(weight, out, width));
    gemm(1.0, x, weight.t(), beta, MatMut::new(&mut y, rows, out), Threads::Pool);
    y
}

fn forward(
    x: (&[f32], &Layout),
    weight: &[f32],
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    count("linear");
    let (rows, width) = x.1.shape().dims2()?;
    let y = product(x.0, weight, bias, width);
    Ok((CpuStorage::F32(y), (rows, weight.len() / width.max(1)).into()))
}

/// g · weight, the gradient of the input.
fn input_gradient(weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    count("linear.backward");
    let ((rows, out), width) = (grad.dims2()?, weight.dim(1)?);
    let mut dx = vec![0.0; rows * width];
    let (grad, weight) = (values(grad)?, values(weight)?);
    let (g, w) = (Mat::new(&grad, rows, out), Mat::new(&weight, out, width));
    gemm(1.0, g, w, 0.0, MatMut::new(&mut dx, rows, width), Threads::Pool);
    Tensor::from_vec(dx, (rows, width), &candle_core::Device::Cpu)
}

/// gᵀ · x, the gradient of the weight.
fn weight_gradient(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let ((rows, out), width) = (grad.dims2()?, x.dim(1)?);
    let mut dw = vec![0.0; out * width];
    let (grad, x) = (values(grad)?, values(x)?);
    let (g, x) = (Mat::new(&grad, rows, out), Mat::new(&x, rows, width));
    gemm(1.0, g.t(), x, 0.0, MatMut::new(&mut dw, out, width), Threads::Pool);
    Tensor::from_vec(dw, (out, width), &candle_core::Device::Cpu)
}

/// Σ over rows of g, the gradient of the bias.
fn bias_gradient(grad: &Tensor) -> Result<Tensor> {
    let (rows, out) = grad.dims2()?;
    let grad = values(grad)?;
    let sums = sum_rows(rows, out, |range, sums| {
        for row in grad[range.start * out..range.end * out].chunks(out) {
            sums.iter_mut().zip(row).for_each(|(s, g)| *s += g);
        }
    });
    Tensor::from_vec(sums, out, &candle_core::Device::Cpu)
}

struct Frozen {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let bias = self.bias.as_ref().map(values).transpose()?;
        forward((slice(x, layout)?, layout), &values(&self.weight)?, bias.as_deref())
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        input_gradient(&self.weight, &grad.contiguous()?).map(Some)
    }
}

struct Trained;

/// Gradients of input and weight, each only if it is wanted.
fn gradients(
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    Ok((
        x.track_op().then(|| input_gradient(weight, grad)).transpose()?,
        weight.track_op().then(|| weight_gradient(x, grad)).transpose()?,
    ))
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((slice(x, lx)?, lx), slice(w, lw)?, None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Trained {
    fn name(&self) -> &'static str {
        "linear"
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
        forward((slice(x, lx)?, lx), slice(w, lw)?, Some(slice(b, lb)?))
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
        let (dx, dw) = gradients(x, weight, &grad)?;
        Ok((dx, dw, bias.track_op().then(|| bias_gradient(&grad)).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn the_composed_gradient_is_right() -> Result<()> {
        let f = |t: &[Tensor]| linear(&t[0], &t[1], Some(&t[2]));
        check(f, &[normal(&[2, 3, 4], 1)?, normal(&[5, 4], 2)?, normal(&[5], 3)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // Products of 768 terms in another order: a few 1e-7 of the largest value.
        for (tokens, width, out) in [(197, 768, 3072), (325, 384, 1152), (1, 7, 5)] {
            let inputs =
                [random(&[2, tokens, width], 1)?, random(&[out, width], 2)?, random(&[out], 3)?];
            assert_twins("linear", 1e-5, &inputs, |t| linear(&t[0], &t[1], Some(&t[2])))?;
            assert_twins("linear", 1e-5, &inputs[..2], |t| linear(&t[0], &t[1], None))?;
            let (w, b) = (inputs[1].clone(), inputs[2].clone());
            assert_twins("linear", 1e-5, &inputs[..1], |t| linear(&t[0], &w, Some(&b)))?;
        }
        Ok(())
    }

    #[test]
    fn only_what_is_tracked_gets_a_gradient() -> Result<()> {
        let (x, w, b) = (random(&[3, 4], 1)?, random(&[5, 4], 2)?, random(&[5], 3)?);
        let var = candle_core::Var::from_tensor(&b)?;
        let grads = linear(&x, &w, Some(&var))?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_none() && grads.get(&w).is_none());
        // Three rows, each with gradient 1.
        assert_eq!(grads.get(&var).unwrap().to_vec1::<f32>()?, [3.0; 5]);
        Ok(())
    }

    #[test]
    fn a_strided_input_is_read_right() -> Result<()> {
        let (x, w) = (random(&[4, 6], 1)?.t()?, random(&[5, 4], 2)?);
        assert_twins("linear", 1e-6, &[w], |t| linear(&x, &t[0], None))
    }
}
