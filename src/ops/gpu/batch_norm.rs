//! Batch normalisation with its ReLU.

use candle_core::{DType, Result, Tensor};

use super::call::{Call, Grid, Number, Output};
use crate::world::World;

/// How each channel is normalised.
pub(in crate::ops) struct Norm<'a> {
    /// `[C]`.
    pub(in crate::ops) weight: &'a Tensor,
    /// `[C]`.
    pub(in crate::ops) bias: &'a Tensor,
    /// Added to the variance.
    pub(in crate::ops) eps: f64,
    /// What is below becomes it: 0 for a ReLU, −∞ for none.
    pub(in crate::ops) floor: f32,
}

/// Mean and variance (divisor n) of every channel of `x` `[B, C, H, W]` over the batches of all processes, which have one shape;
/// without gradients.
pub(in crate::ops) fn channel_statistics(x: &Tensor, world: World) -> Result<(Tensor, Tensor)> {
    let x = x.detach().contiguous()?;
    let (images, channels, height, width) = x.dims4()?;
    let of_channels = |kernel, inputs: &[&Tensor]| {
        let call = Call {
            kernel,
            inputs,
            outputs: &[Output::Unwritten(channels.into())],
            numbers: &[images, channels, height * width].map(Into::into),
            grid: Grid::Rows(channels),
        };
        over_ranks(&call.one()?.tensor(), world)? / world.size as f64
    };
    let mean = of_channels("channel_mean", &[&x])?;
    let variance = of_channels("channel_variance", &[&x, &mean])?;
    Ok((mean, variance))
}

/// The sum over all processes of a value per channel.
fn over_ranks(values: &Tensor, world: World) -> Result<Tensor> {
    if world.size == 1 {
        return Ok(values.clone());
    }
    let mut sums = values.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    world.sum(&mut sums)?;
    Tensor::new(sums, values.device())?.to_dtype(DType::F32)
}

/// Where the statistics come from, and so whether the gradient passes through them.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Statistics {
    /// From the batches of all processes.
    Batch(World),
    /// From elsewhere.
    Given,
}

/// `x` `[B, C, H, W]` normalised with `mean` and `variance` `[C]`.
pub(in crate::ops) fn batch_norm(
    x: &Tensor,
    (mean, variance): (Tensor, Tensor),
    source: Statistics,
    norm: &Norm,
) -> Result<Tensor> {
    let (x, weight, bias) = (x.contiguous()?, norm.weight.contiguous()?, norm.bias.contiguous()?);
    let (images, channels, height, width) = x.dims4()?;
    let area = height * width;
    let (shape, floor) = (x.shape().clone(), Number::F32(norm.floor));
    let values: [Number; 5] = [channels.into(), area.into(), images.into(), norm.eps.into(), floor];
    let grid = Grid::Values(x.elem_count());
    let y = Call {
        kernel: "batch_norm",
        inputs: &[&x, &mean, &variance, &weight, &bias],
        outputs: &[Output::Unwritten(shape.clone())],
        numbers: &values,
        grid,
    };
    let eps = norm.eps;
    y.one()?.with_gradient(&[&x, &weight, &bias], move |inputs, y, grad| {
        let [x, weight, _] = inputs else { unreachable!("three inputs") };
        let sums = Call {
            kernel: "batch_norm_sums",
            inputs: &[x, &mean, y, grad],
            outputs: &[Output::Unwritten(channels.into()), Output::Unwritten(channels.into())],
            numbers: &[images.into(), channels.into(), area.into(), floor],
            grid: Grid::Rows(channels),
        };
        let sums = sums.tensors()?;
        let (plain, product) = (&sums[0], &sums[1]);
        // Through the statistics every value depends on the gradients of all processes.
        let (all_plain, all_product, share) = match source {
            Statistics::Batch(world) => {
                let share = 1.0 / (images * area * world.size) as f64;
                (over_ranks(plain, world)?, over_ranks(product, world)?, share)
            }
            Statistics::Given => (plain.clone(), product.clone(), 0.0),
        };
        let dx = Call {
            kernel: "batch_norm_gradient",
            inputs: &[x, &mean, &variance, weight, &all_plain, &all_product, y, grad],
            outputs: &[Output::Unwritten(shape.clone())],
            numbers: &[&values[..], &[share.into()]].concat(),
            grid,
        };
        let dx = if x.track_op() { Some(dx.one()?.tensor()) } else { None };
        let dweight = (product / (&variance + eps)?.sqrt()?)?;
        Ok(vec![dx, Some(dweight), Some(plain.clone())])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Result, Tensor, Var};

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::twin::random;
    use crate::ops::{BatchNorm, NormMode};
    use crate::world::World;

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        let inputs = [random(&[2, 5, 7, 9], 1)?, random(&[5], 2)?, random(&[5], 3)?];
        for mode in [NormMode::Running, NormMode::Batch { update: true, world: World::SINGLE }] {
            let run = |t: &[Tensor], relu: bool| {
                let running =
                    |value: f32| Var::from_tensor(&Tensor::full(value, 5, t[0].device())?);
                let norm = BatchNorm {
                    weight: t[1].clone(),
                    bias: t[2].clone(),
                    running_mean: running(0.3)?,
                    running_var: running(1.7)?,
                    eps: 1e-5,
                    momentum: 0.1,
                };
                let y =
                    if relu { norm.relu(mode).forward(&t[0]) } else { norm.forward(&t[0], mode) }?;
                // The running statistics after the step count too.
                let after = (norm.running_mean.as_detached_tensor()
                    + norm.running_var.as_detached_tensor())?;
                y.broadcast_add(&after.reshape((1, 5, 1, 1))?)
            };
            for relu in [false, true] {
                assert_kernel("batch_norm", 3e-6, &inputs, |t| run(t, relu))?;
            }
        }
        Ok(())
    }
}
