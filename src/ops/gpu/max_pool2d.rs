//! Max pooling.

use candle_core::{Result, Tensor};

use super::call::{Call, Grid, Output};

/// As [`max_pool2d`](crate::ops::max_pool2d), which knows that the windows fit; `size`: rows and columns of windows.
pub(in crate::ops) fn max_pool2d(
    x: &Tensor,
    size: (usize, usize),
    (kernel, stride, padding): (usize, usize, usize),
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, channels, height, width) = x.dims4()?;
    let planes = batch * channels;
    let numbers = [height, width, size.0, size.1, kernel, stride, padding, planes].map(Into::into);
    let grid = Grid::Values(planes * size.0 * size.1);
    let y = Call {
        kernel: "max_pool2d",
        inputs: &[&x],
        outputs: &[Output::Unwritten((batch, channels, size.0, size.1).into())],
        numbers: &numbers,
        grid,
    };
    y.one()?.with_gradient(&[&x], move |inputs, _, grad| {
        let dx = Call {
            kernel: "max_pool2d_gradient",
            inputs: &[inputs[0], grad],
            outputs: &[Output::Zeros(inputs[0].shape().clone())],
            numbers: &numbers,
            grid,
        };
        Ok(vec![Some(dx.one()?.tensor())])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::max_pool2d;
    use crate::ops::twin::random;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        let x = [random(&[2, 3, 9, 14], 1)?];
        for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (1, 2, 0)] {
            assert_kernel("max_pool2d", 1e-6, &x, |t| max_pool2d(&t[0], kernel, stride, padding))?;
        }
        Ok(())
    }
}
