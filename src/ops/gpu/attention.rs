//! Attention without the matrix of all scores.

use candle_core::{Result, Tensor, bail};

use super::call::{Call, Grid, Number, Output, THREADS};

/// Kernels for heads of this width, forward and backward.
fn kernels(width: usize) -> Option<(&'static str, &'static str)> {
    match width {
        32 => Some(("attention_32", "attention_gradient_32")),
        64 => Some(("attention_64", "attention_gradient_64")),
        _ => None,
    }
}

/// Whether there is a kernel for heads of this width.
pub(in crate::ops) fn attends(width: usize) -> bool {
    kernels(width).is_some()
}

/// As [`self_attention`](crate::ops::self_attention), with the logarithm of how many keys each token counts as, far below zero where
/// it is none: `bias` `[B, N]`, which has no gradient.
pub(in crate::ops) fn self_attention(
    qkv: &Tensor,
    (heads, width): (usize, usize),
    bias: &Tensor,
) -> Result<Tensor> {
    let Some((forward, backward)) = kernels(width) else {
        bail!("attention: there is no kernel for heads of {width} channels")
    };
    let (qkv, bias) = (qkv.contiguous()?, bias.detach().contiguous()?);
    let (batch, tokens, _) = qkv.dims3()?;
    let of_heads = (batch, heads, tokens);
    let scale = (width as f64).powf(-0.5);
    let numbers: [Number; 3] = [tokens.into(), heads.into(), scale.into()];
    let grid = Grid::Rows(batch * heads * tokens.div_ceil(THREADS));
    let call = Call {
        kernel: forward,
        inputs: &[&qkv, &bias],
        outputs: &[
            Output::Unwritten((batch, tokens, heads * width).into()),
            Output::Unwritten(of_heads.into()),
        ],
        numbers: &numbers,
        grid,
    };
    let [y, lse] = call.run()?.try_into().map_err(|_| too_few(forward))?;
    let lse = lse.tensor();
    y.with_gradient(&[&qkv], move |inputs, y, grad| {
        let count = lse.elem_count();
        let delta = Call {
            kernel: "attention_delta",
            inputs: &[y, grad],
            outputs: &[Output::Unwritten(of_heads.into())],
            numbers: &[tokens.into(), heads.into(), width.into(), Number::Size(count as u64)],
            grid: Grid::Values(count),
        };
        let dqkv = Call {
            kernel: backward,
            inputs: &[inputs[0], &bias, &lse, &delta.one()?.tensor(), grad],
            outputs: &[Output::Unwritten(inputs[0].shape().clone())],
            numbers: &numbers,
            grid,
        };
        Ok(vec![Some(dqkv.one()?.tensor())])
    })
}

fn too_few(kernel: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("{kernel}: has two outputs"))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::self_attention;
    use crate::ops::twin::random;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        for (batch, tokens, heads, width) in [(2, 5, 2, 64), (1, 130, 2, 32), (1, 257, 1, 64)] {
            let qkv = [random(&[batch, tokens, 3 * heads * width], 1)?];
            let name = format!("attention_{width}");
            assert_kernel(&name, 1e-5, &qkv, |t| self_attention(&t[0], heads, None))?;
            // Half of the tokens are keys, one counts as three, and the last image has none.
            let keep =
                (0..batch * tokens).map(|i| match (i / tokens + 1 == batch && batch > 1, i) {
                    (true, _) => 0.0,
                    (_, 3) => 3.0,
                    (_, i) => f32::from(u8::from(i % 2 == 0)),
                });
            let keep = Tensor::from_iter(keep, &Device::Cpu)?.reshape((batch, tokens))?;
            assert_kernel(&name, 1e-5, &qkv, |t| {
                self_attention(&t[0], heads, Some(&keep.to_device(t[0].device())?))
            })?;
        }
        Ok(())
    }
}
