//! GELU.

use candle_core::{Result, Tensor};

use super::call::{Call, Grid, Number, Output};

/// x·Φ(x).
pub(in crate::ops) fn gelu(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (count, shape) = (x.elem_count(), x.shape().clone());
    let call = move |kernel, inputs: &[&Tensor]| {
        let call = Call {
            kernel,
            inputs,
            outputs: &[Output::Unwritten(shape.clone())],
            numbers: &[Number::Size(count as u64)],
            grid: Grid::Values(count),
        };
        call.one()
    };
    let y = call("gelu", &[&x])?;
    y.with_gradient(&[&x], move |inputs, _, grad| {
        Ok(vec![Some(call("gelu_gradient", &[inputs[0], grad])?.tensor())])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gelu;
    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::twin::random;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        let x = (random(&[3, 5, 77], 1)? * 3.0)?;
        assert_kernel("gelu", 1e-6, &[x], |t| gelu(&t[0].transpose(0, 1)?))
    }
}
