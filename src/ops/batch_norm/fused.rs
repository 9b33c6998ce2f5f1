//! Batch normalisation, with its ReLU if wanted, in one pass over the map after its statistics.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::ops::activation::{Activation, at_least};
use crate::ops::count;
use crate::ops::fresh::{Fresh, bundle};
use crate::ops::host::values;
use crate::ops::resize::Resized;
use crate::ops::rows::{Scratch, filled, scratch};
use crate::ops::spent::spend;
use crate::ops::vector::{sum_of, vectorised};
use crate::world::World;

/// What each channel is normalised with.
#[derive(Debug)]
pub(super) struct Stats {
    pub(super) mean: Vec<f32>,
    pub(super) var: Vec<f32>,
    /// Values per channel that they were found over.
    pub(super) count: f64,
}

impl Stats {
    /// Mean and variance (divisor n) of every channel of `x` `[B, C, H, W]`, contiguous, the variance about the mean that was found;
    /// over the maps of all processes.
    pub(super) fn of(x: &Tensor, world: World) -> Result<Self> {
        Map::new(&values(x)?, x)?.stats(world)
    }
}

/// The operation on a contiguous map, and what its backward pass needs besides that.
pub(super) struct Fused {
    pub(super) stats: Stats,
    /// The processes whose batches the statistics are: the gradient passes through them. `None` if they are given.
    pub(super) world: Option<World>,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    /// `[C]`, contiguous.
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Fused {
    /// The result for `x` `[B, C, H, W]` and its gradient; added to `plus`, resized.
    pub(super) fn tensor(self, x: &Tensor, plus: Option<&Tensor>) -> Result<Tensor> {
        let plus = plus.map(Tensor::contiguous).transpose()?;
        let resized = plus.as_ref().map(|plus| Resized::new(plus, x.shape())).transpose()?;
        let mut y = self.forward(x)?;
        if let (Some(plus), Some(resized)) = (&plus, &resized) {
            resized.add(&values(plus)?, &mut y);
        }
        let affine = bundle(&[self.weight.clone(), self.bias.clone()])?;
        let inputs: Vec<&Tensor> = [x, &affine].into_iter().chain(&plus).collect();
        Fresh::on_cpu(y, x.shape()).with_gradient(&inputs, move |inputs, y, grad| {
            spend(y)?;
            let of_plus = match (&resized, inputs.get(2)) {
                (Some(resized), Some(plus)) if plus.track_op() => {
                    let of_plus = resized.gradient(&values(grad)?);
                    Some(Tensor::from_vec(of_plus, plus.shape(), &Device::Cpu)?)
                }
                _ => None,
            };
            let [of_x, of_affine] = self.backward(inputs[0], grad)?;
            spend(grad)?;
            Ok([of_x, of_affine, of_plus].into_iter().take(inputs.len()).collect())
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Vec<f32>> {
        count("batch_norm");
        let (lines, floor) = (self.lines()?, self.activation.floor());
        Ok(Map::new(&values(x)?, x)?.planes_of(
            #[inline(always)]
            |c, x, y| {
                let line = lines[c];
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = at_least(floor, line.of(x)));
            },
        ))
    }

    /// What the norm is on each channel.
    fn lines(&self) -> Result<Vec<Line>> {
        let (weight, bias) = (values(&self.weight)?, values(&self.bias)?);
        let of_channel = |(c, (weight, &bias)): (usize, (&f32, &f32))| Line {
            mean: self.stats.mean[c],
            scale: inverse_deviation(self.stats.var[c], self.eps) * weight,
            bias,
        };
        Ok(weight.iter().zip(&*bias).enumerate().map(of_channel).collect())
    }

    /// The gradients of the map and of weight and bias, one after the other.
    fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        count("batch_norm.backward");
        let (xs, grads) = (values(x)?, values(grad)?);
        let map = Map::new(&xs, x)?;
        let lines = self.lines()?;
        // Under a ReLU only the positive outputs pass a gradient on.
        let positive = matches!(self.activation, Activation::Relu).then_some(&lines[..]);
        let upstream = Upstream { grads: &grads, positive };
        let sums = map.gradient_sums(&upstream, &self.stats.mean);
        // Through the statistics every value depends on the gradients of all processes.
        let all_sums = match self.world {
            Some(world) => over_ranks(&sums, world)?,
            None => Vec::new(),
        };
        let deviation = |c: usize| inverse_deviation(self.stats.var[c], self.eps);
        let of_x = if x.track_op() {
            let dx = map.planes_with(
                &upstream,
                #[inline(always)]
                |c, x, g, dx| {
                    let Line { mean, scale, .. } = lines[c];
                    if let Some((plain, product)) = all_sums.get(c) {
                        let mean_grad = (plain / self.stats.count) as f32;
                        let slope =
                            (product / self.stats.count) as f32 * deviation(c) * deviation(c);
                        for ((d, &g), &x) in dx.iter_mut().zip(g).zip(x) {
                            *d = scale * ((mean - x).mul_add(slope, g) - mean_grad);
                        }
                    } else {
                        dx.iter_mut().zip(g).for_each(|(d, &g)| *d = scale * g);
                    }
                },
            );
            Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?)
        } else {
            None
        };
        let of_weight = sums.iter().enumerate().map(|(c, sums)| sums.1 as f32 * deviation(c));
        let of_both: Vec<f32> = of_weight.chain(sums.iter().map(|sums| sums.0 as f32)).collect();
        let count = of_both.len();
        Ok([of_x, Some(Tensor::from_vec(of_both, count, &Device::Cpu)?)])
    }
}

/// The sums over all processes.
fn over_ranks(sums: &[(f64, f64)], world: World) -> Result<Vec<(f64, f64)>> {
    let mut flat: Vec<f64> = sums.iter().flat_map(|&(plain, product)| [plain, product]).collect();
    world.sum(&mut flat)?;
    Ok(flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// 1 / sqrt(var + eps).
pub(super) fn inverse_deviation(var: f32, eps: f64) -> f32 {
    (1.0 / (f64::from(var) + eps).sqrt()) as f32
}

/// (x − mean) · scale + bias, rounded the same in both passes.
#[derive(Clone, Copy)]
struct Line {
    mean: f32,
    scale: f32,
    bias: f32,
}

impl Line {
    #[inline(always)]
    fn of(self, x: f32) -> f32 {
        (x - self.mean).mul_add(self.scale, self.bias)
    }
}

/// Gradients of the outputs, and the norm of every channel where only positive outputs pass them on.
struct Upstream<'a> {
    grads: &'a [f32],
    positive: Option<&'a [Line]>,
}

impl Upstream<'_> {
    /// The gradient of one plane of a channel, of which `x` is the input; `buffer` is used where it has to be masked.
    #[inline(always)]
    fn plane<'a>(
        &'a self,
        (plane, channel): (usize, usize),
        x: &[f32],
        buffer: &'a mut [f32],
    ) -> &'a [f32] {
        let grads = &self.grads[plane * x.len()..][..x.len()];
        let Some(lines) = self.positive else { return grads };
        let line = lines[channel];
        for ((b, &g), &x) in buffer.iter_mut().zip(grads).zip(x) {
            *b = if line.of(x) > 0.0 { g } else { 0.0 };
        }
        buffer
    }
}

/// A map `[B, C, area]`.
struct Map<'a> {
    values: &'a [f32],
    channels: usize,
    area: usize,
}

impl<'a> Map<'a> {
    /// The `values` of `x` `[B, C, H, W]`.
    fn new(values: &'a [f32], x: &Tensor) -> Result<Self> {
        let (_, channels, height, width) = x.dims4()?;
        Ok(Self { values, channels, area: height * width })
    }

    fn images(&self) -> usize {
        self.values.len() / (self.channels * self.area).max(1)
    }

    /// The planes of a channel: their numbers and values.
    fn planes(&self, channel: usize) -> impl Iterator<Item = (usize, &[f32])> {
        (0..self.images()).map(move |image| {
            let plane = image * self.channels + channel;
            (plane, &self.values[plane * self.area..][..self.area])
        })
    }

    fn stats(&self, world: World) -> Result<Stats> {
        let count = (self.images() * self.area) as f64;
        if world.size > 1 {
            return self.shared_stats(count, world);
        }
        let of_channel = |channel: usize| {
            let mean = (self.sum(channel) / count) as f32;
            (mean, (self.squares(channel, mean) / count) as f32)
        };
        let (mean, var) = (0..self.channels).into_par_iter().map(of_channel).unzip();
        Ok(Stats { mean, var, count })
    }

    /// [`Self::stats`] of several processes, which exchange the sums of all channels at once.
    fn shared_stats(&self, count: f64, world: World) -> Result<Stats> {
        let channels = || (0..self.channels).into_par_iter();
        let mut sums: Vec<f64> = channels().map(|channel| self.sum(channel)).collect();
        sums.push(count);
        world.sum(&mut sums)?;
        let count = sums.pop().unwrap_or(count);
        let mean: Vec<f32> = sums.iter().map(|sum| (sum / count) as f32).collect();
        let mut squares: Vec<f64> =
            channels().map(|channel| self.squares(channel, mean[channel])).collect();
        world.sum(&mut squares)?;
        let var = squares.iter().map(|sum| (sum / count) as f32).collect();
        Ok(Stats { mean, var, count })
    }

    /// Σ x of a channel.
    fn sum(&self, channel: usize) -> f64 {
        vectorised(
            #[inline(always)]
            || self.planes(channel).map(|(_, x)| f64::from(sum_of(x, x, |x, _| x))).sum(),
        )
    }

    /// Σ (x − mean)² of a channel.
    fn squares(&self, channel: usize, mean: f32) -> f64 {
        vectorised(
            #[inline(always)]
            || {
                let of_plane = |x: &[f32]| sum_of(x, x, |x, _| (x - mean) * (x - mean));
                self.planes(channel).map(|(_, x)| f64::from(of_plane(x))).sum()
            },
        )
    }

    /// Room for a plane of gradients, if they are to be masked.
    fn scratch(&self, upstream: &Upstream) -> Scratch {
        scratch(if upstream.positive.is_some() { self.area } else { 0 })
    }

    /// For every channel Σ g and Σ g·(x − mean).
    fn gradient_sums(&self, upstream: &Upstream, mean: &[f32]) -> Vec<(f64, f64)> {
        let of_channel = |channel: usize| {
            let mut buffer = self.scratch(upstream);
            vectorised(
                #[inline(always)]
                || {
                    let (mut plain, mut product) = (0.0, 0.0);
                    for (plane, x) in self.planes(channel) {
                        let g = upstream.plane((plane, channel), x, &mut buffer);
                        plain += f64::from(sum_of(g, g, |g, _| g));
                        product += f64::from(sum_of(g, x, |g, x| g * (x - mean[channel])));
                    }
                    (plain, product)
                },
            )
        };
        (0..self.channels).into_par_iter().map(of_channel).collect()
    }

    /// What `f(channel, plane, plane of the result)` makes of every plane.
    fn planes_of(&self, f: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Vec<f32> {
        filled(self.values.len(), self.area, |plane, out| {
            let x = &self.values[plane * self.area..][..self.area];
            vectorised(
                #[inline(always)]
                || f(plane % self.channels, x, out),
            );
        })
    }

    /// [`Self::planes_of`] with the gradient of the output's plane.
    fn planes_with(
        &self,
        upstream: &Upstream,
        f: impl Fn(usize, &[f32], &[f32], &mut [f32]) + Sync,
    ) -> Vec<f32> {
        filled(self.values.len(), self.area, |plane, out| {
            let x = &self.values[plane * self.area..][..self.area];
            let mut buffer = self.scratch(upstream);
            vectorised(
                #[inline(always)]
                || {
                    let channel = plane % self.channels;
                    f(channel, x, upstream.plane((plane, channel), x, &mut buffer), out);
                },
            );
        })
    }
}
