//! What a convolution and its adjoint have in common: of a map and a weight they make a map that is linear in both.

use candle_core::{Device, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::ops::count;
use crate::ops::epilogue::Epilogue;
use crate::ops::fresh::Fresh;
use crate::ops::host::values;
use crate::ops::spent::spend;

/// The arithmetic of such an operation.
pub(in crate::ops) trait Bilinear: Send + Sync + 'static {
    /// The name under which calls are counted.
    const FORWARD: &str;
    /// That of backward passes.
    const BACKWARD: &str;

    /// Of the map that is made, `[B, O, H', W']`.
    fn shape(&self) -> Shape;

    /// That map's values.
    fn forward(&self, x: &[f32], weight: &[f32], epilogue: Epilogue) -> Vec<f32>;

    /// The gradient of `x` for that of the new map.
    fn input_gradient(&self, weight: &[f32], grad: &[f32]) -> Vec<f32>;

    /// The gradient of the weight.
    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32>;
}

/// `op` of `x` and `weight`, plus `bias` `[O]`, as one operation with its own backward pass.
pub(in crate::ops) fn apply(
    op: impl Bilinear,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let inputs: Vec<&Tensor> = [&x, &weight].into_iter().chain(&bias).collect();
    forward(&op, &inputs)?.with_gradient(&inputs, move |inputs, y, grad| {
        spend(y)?;
        let gradients = backward(&op, inputs, grad)?;
        spend(grad)?;
        Ok(gradients)
    })
}

fn forward<Op: Bilinear>(op: &Op, inputs: &[&Tensor]) -> Result<Fresh> {
    count(Op::FORWARD);
    let bias = inputs.get(2).map(|&bias| values(bias)).transpose()?;
    let epilogue = Epilogue::bias(bias.as_deref());
    let y = op.forward(&values(inputs[0])?, &values(inputs[1])?, epilogue);
    Ok(Fresh::on_cpu(y, op.shape()))
}

fn backward<Op: Bilinear>(
    op: &Op,
    inputs: &[&Tensor],
    grad: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    count(Op::BACKWARD);
    let g = values(grad)?;
    let gradients = inputs.iter().enumerate().map(|(i, input)| {
        let values = match i {
            _ if !input.track_op() => return Ok(None),
            0 => op.input_gradient(&values(inputs[1])?, &g),
            1 => op.weight_gradient(&values(inputs[0])?, &g),
            _ => return channel_sums(grad).map(Some),
        };
        Tensor::from_vec(values, input.shape(), &Device::Cpu).map(Some)
    });
    gradients.collect()
}

/// Σ over images and pixels of `x` `[B, C, H, W]` → `[C]`.
fn channel_sums(x: &Tensor) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let data = values(x)?;
    let data: &[f32] = &data;
    let sum = |channel: usize| -> f32 {
        let planes = data.chunks_exact(height * width).skip(channel).step_by(channels);
        planes.map(|plane| f64::from(sum(plane))).sum::<f64>() as f32
    };
    Tensor::from_vec(
        (0..channels).into_par_iter().map(sum).collect::<Vec<f32>>(),
        channels,
        &Device::Cpu,
    )
}

/// Sixteen running sums, so that the loop vectorises and rounding grows slowly.
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0f32; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
