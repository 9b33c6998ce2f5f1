//! Maps under one sparse matrix per axis.

use candle_core::{Device, Result, Tensor};

use super::call::{Call, Grid, Output};
use crate::ops::fresh::Fresh;
use crate::ops::separable::{Axis, Dense};

/// `x` `[B, C, H, W]` → `[B, C, rows, columns]`.
pub(in crate::ops) fn separable(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    let x = x.contiguous()?;
    let back = (rows.transposed(), columns.transposed());
    run(&x, rows, columns)?.with_gradient(&[&x], move |_, _, grad| {
        Ok(vec![Some(run(grad, &back.0, &back.1)?.tensor())])
    })
}

fn run(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Fresh> {
    let (batch, channels, height, width) = x.dims4()?;
    let (rows, columns) = (Dense::new(rows), Dense::new(columns));
    let planes = batch * channels;
    let shape = (batch, channels, rows.outputs(), columns.outputs());
    let [row_start, column_start] = [starts(&rows, x.device())?, starts(&columns, x.device())?];
    let [row_weights, column_weights] = [&rows, &columns]
        .map(|axis| Tensor::from_vec(axis.weights().to_vec(), axis.weights().len(), x.device()));
    let sizes = [height, width, shape.2, shape.3, rows.taps, columns.taps, planes];
    let call = Call {
        kernel: "separable",
        inputs: &[x, &row_start, &row_weights?, &column_start, &column_weights?],
        outputs: &[Output::Unwritten(shape.into())],
        numbers: &sizes.map(Into::into),
        grid: Grid::Values(planes * shape.2 * shape.3),
    };
    call.one()
}

fn starts(axis: &Dense, device: &Device) -> Result<Tensor> {
    let starts: Vec<u32> = axis.start.iter().map(|&start| start as u32).collect();
    Tensor::new(starts, device)
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::twin::random;
    use crate::ops::{Interpolation, adaptive_avg_pool2d, avg_pool2d, resize};

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        let x = [random(&[2, 3, 9, 14], 1)?];
        for mode in [
            Interpolation::Nearest,
            Interpolation::Bilinear { align_corners: false },
            Interpolation::Bilinear { align_corners: true },
            Interpolation::Bicubic { align_corners: false },
        ] {
            for size in [(18, 28), (5, 30), (4, 3)] {
                assert_kernel("separable", 1e-6, &x, |t| resize(&t[0], size, mode))?;
            }
        }
        assert_kernel("separable", 1e-6, &x, |t| adaptive_avg_pool2d(&t[0], (2, 3)))?;
        assert_kernel("separable", 1e-6, &x, |t| avg_pool2d(&t[0].transpose(2, 3)?, 2, 2))
    }
}
