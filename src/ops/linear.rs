//! The linear layer.

use candle_core::{Device, Result, Tensor, bail};

use super::fresh::Fresh;
use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::values;
use super::product::linear_product;
use super::rows::{filled, sum_rows, zeros};
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
    if fusible(&[x, weight, bias.unwrap_or(weight)]) {
        return fused(x, weight, bias, shape);
    }
    let y = linear_product(&x.reshape(((), width))?, weight)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

fn fused(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, shape: Vec<usize>) -> Result<Tensor> {
    count("linear");
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let y = {
        let bias = bias.as_ref().map(values).transpose()?;
        product(&values(&x)?, &values(&weight)?, bias.as_deref(), weight.dim(1)?)
    };
    let mut inputs = vec![&x];
    // Frozen weights are no inputs, so candle knows of no gradient for them.
    if weight.track_op() || bias.as_ref().is_some_and(Tensor::track_op) {
        inputs.push(&weight);
        inputs.extend(&bias);
    }
    let weight = weight.clone();
    Fresh::on_cpu(y, shape).with_gradient(&inputs, move |inputs, _, grad| {
        let gradients = inputs.iter().enumerate().map(|(i, input)| match i {
            _ if !input.track_op() => Ok(None),
            0 => input_gradient(input, &weight, grad).map(Some),
            1 => weight_gradient(inputs[0], &weight, grad).map(Some),
            _ => bias_gradient(input, grad).map(Some),
        });
        gradients.collect()
    })
}

/// `x · weightᵀ + bias` on the CPU, `x` `[rows, in]`.
pub(crate) fn product(x: &[f32], weight: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
    let (rows, out) = (x.len() / width.max(1), weight.len() / width.max(1));
    // The bias takes the place of zeros, so it costs no pass of its own.
    let mut y = match bias {
        Some(bias) => filled(rows * out, out, |_, row| row.copy_from_slice(bias)),
        None => zeros(rows * out),
    };
    let beta = if bias.is_some() { 1.0 } else { 0.0 };
    let (x, weight) = (Mat::new(x, rows, width), Mat::new(weight, out, width));
    gemm(1.0, x, weight.t(), beta, MatMut::new(&mut y, rows, out), Threads::Pool);
    y
}

/// g · weight, the gradient of the input.
fn input_gradient(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    count("linear.backward");
    let ((out, width), rows) = (weight.dims2()?, rows_of(grad)?);
    let mut dx = zeros(rows * width);
    let (grad, weight) = (values(grad)?, values(weight)?);
    let (g, w) = (Mat::new(&grad, rows, out), Mat::new(&weight, out, width));
    gemm(1.0, g, w, 0.0, MatMut::new(&mut dx, rows, width), Threads::Pool);
    Tensor::from_vec(dx, x.shape(), &Device::Cpu)
}

/// gᵀ · x, the gradient of the weight.
fn weight_gradient(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let ((out, width), rows) = (weight.dims2()?, rows_of(grad)?);
    let mut dw = zeros(out * width);
    let (grad, x) = (values(grad)?, values(x)?);
    let (g, x) = (Mat::new(&grad, rows, out), Mat::new(&x, rows, width));
    gemm(1.0, g.t(), x, 0.0, MatMut::new(&mut dw, out, width), Threads::Pool);
    Tensor::from_vec(dw, (out, width), &Device::Cpu)
}

/// Σ over rows of g, the gradient of the bias.
fn bias_gradient(bias: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let sums = column_sums(&values(grad)?, bias.elem_count());
    Tensor::from_vec(sums, bias.shape(), &Device::Cpu)
}

/// Σ over the rows of `grad`, `width` values each.
pub(crate) fn column_sums(grad: &[f32], width: usize) -> Vec<f32> {
    sum_rows(grad.len() / width.max(1), width, |range, sums| {
        for row in grad[range.start * width..range.end * width].chunks(width) {
            sums.iter_mut().zip(row).for_each(|(s, g)| *s += g);
        }
    })
}

/// How many rows `[…, C]` has.
fn rows_of(tensor: &Tensor) -> Result<usize> {
    Ok(tensor.elem_count() / tensor.dim(candle_core::D::Minus1)?.max(1))
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
