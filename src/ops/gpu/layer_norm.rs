//! Layer normalisation.

use candle_core::{Result, Tensor};

use super::call::{Call, Grid, Number, Output};

/// Rows whose share of the weights' gradient a block sums.
const ROWS: usize = 64;

/// As [`layer_norm`](crate::ops::layer_norm), whose shapes it has checked.
pub(in crate::ops) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let (width, shape) = (weight.elem_count(), x.shape().clone());
    let rows = x.elem_count() / width.max(1);
    let numbers: [Number; 2] = [width.into(), eps.into()];
    let y = Call {
        kernel: "layer_norm",
        inputs: &[&x, &weight, &bias],
        outputs: &[Output::Unwritten(shape.clone())],
        numbers: &numbers,
        grid: Grid::Rows(rows),
    };
    y.one()?.with_gradient(&[&x, &weight, &bias], move |inputs, _, grad| {
        let [x, weight, bias] = inputs else { unreachable!("three inputs") };
        let dx = Call {
            kernel: "layer_norm_input_gradient",
            inputs: &[x, weight, grad],
            outputs: &[Output::Unwritten(shape.clone())],
            numbers: &numbers,
            grid: Grid::Rows(rows),
        };
        let dx = if x.track_op() { Some(dx.one()?.tensor()) } else { None };
        if !weight.track_op() && !bias.track_op() {
            return Ok(vec![dx, None, None]);
        }
        let affine = Call {
            kernel: "layer_norm_affine_gradient",
            inputs: &[x, grad],
            outputs: &[Output::Zeros(width.into()), Output::Zeros(width.into())],
            numbers: &[rows.into(), ROWS.into(), numbers[0], numbers[1]],
            grid: Grid::Rows(rows.div_ceil(ROWS)),
        };
        Ok(std::iter::once(dx).chain(affine.tensors()?.into_iter().map(Some)).collect())
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::layer_norm;
    use crate::ops::twin::random;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        for (rows, width) in [(70, 384), (3, 5), (2, 128)] {
            let inputs =
                [random(&[2, rows, width], 1)?, random(&[width], 2)?, random(&[width], 3)?];
            assert_kernel("layer_norm", 3e-6, &inputs, |t| layer_norm(&t[0], &t[1], &t[2], 1e-6))?;
            assert_kernel("layer_norm", 3e-6, &inputs[..1], |t| {
                let device = t[0].device();
                let (w, b) = (inputs[1].to_device(device)?, inputs[2].to_device(device)?);
                layer_norm(&t[0].transpose(0, 1)?, &w, &b, 1e-6)
            })?;
        }
        Ok(())
    }
}
