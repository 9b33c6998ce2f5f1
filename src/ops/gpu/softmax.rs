//! Softmax.

use candle_core::{D, Result, Tensor};

use super::call::{Call, Grid, Output};

/// Softmax over the last axis.
pub(in crate::ops) fn softmax(x: &Tensor) -> Result<Tensor> {
    let (x, width) = (x.contiguous()?, x.dim(D::Minus1)?);
    let (rows, shape) = (x.elem_count() / width.max(1), x.shape().clone());
    let call = move |kernel, inputs: &[&Tensor]| {
        let call = Call {
            kernel,
            inputs,
            outputs: &[Output::Unwritten(shape.clone())],
            numbers: &[width.into()],
            grid: Grid::Rows(rows),
        };
        call.one()
    };
    let y = call("softmax", &[&x])?;
    y.with_gradient(&[&x], move |_, y, grad| {
        Ok(vec![Some(call("softmax_gradient", &[y, grad])?.tensor())])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::softmax;
    use crate::ops::twin::random;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        for (rows, width) in [(60, 197), (3, 1), (2, 700)] {
            let x = (random(&[2, rows, width], 1)? * 8.0)?;
            assert_kernel("softmax", 3e-6, &[x], |t| softmax(&t[0]))?;
        }
        Ok(())
    }
}
