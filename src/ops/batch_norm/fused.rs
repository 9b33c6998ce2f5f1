//! Batch normalisation, with its ReLU if wanted, in one pass over the map after its statistics.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::ops::activation::{Activation, at_least};
use crate::ops::count;
use crate::ops::host::{slice, values};
use crate::ops::rows::{filled, scratch};
use crate::ops::vector::{sum_of, vectorised};
use crate::world::World;

/// What each channel is normalised with.
#[derive(Debug, Clone)]
pub(super) struct Stats {
    pub(super) mean: Vec<f32>,
    pub(super) var: Vec<f32>,
    /// Values per channel that they were found over.
    pub(super) count: f64,
}

/// Where the statistics come from, and so whether the gradient passes through them.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Filled in by the forward pass, over the batches of all processes.
    Batch(Arc<OnceLock<Stats>>, World),
    Given(Stats),
}

/// The operation on (x, weight, bias).
pub(super) struct Fused {
    pub(super) source: Source,
    pub(super) eps: f64,
    pub(super) activation: Activation,
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("batch_norm");
        let (_, channels, height, width) = layout.shape().dims4()?;
        let map = Map { values: slice(x, layout)?, channels, area: height * width };
        let stats = match &self.source {
            Source::Batch(cell, world) => {
                let stats = map.stats(*world)?;
                cell.get_or_init(|| stats)
            }
            Source::Given(stats) => stats,
        };
        let (weight, bias) = (slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let y = map.planes_of(
            #[inline(always)]
            |c, x, y| {
                let (mean, bias) = (stats.mean[c], bias[c]);
                let scale = self.inverse_deviation(stats.var[c]) * weight[c];
                let floor = self.activation.floor();
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = at_least(floor, (x - mean).mul_add(scale, bias));
                }
            },
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        count("batch_norm.backward");
        let (_, channels, height, width) = x.dims4()?;
        let (xs, ys, grad) = (values(x)?, values(y)?, grad.contiguous()?);
        let (xs, ys, grads): (&[f32], &[f32], _) = (&xs, &ys, values(&grad)?);
        let map = Map { values: xs, channels, area: height * width };
        // Under a ReLU only the positive outputs pass a gradient on.
        let upstream = Upstream {
            grads: &grads,
            outputs: matches!(self.activation, Activation::Relu).then_some(ys),
        };
        let (stats, shared) = match &self.source {
            Source::Batch(cell, world) => match cell.get() {
                Some(stats) => (stats, Some(world)),
                None => bail!("batch_norm: the forward pass kept nothing for the gradient"),
            },
            Source::Given(stats) => (stats, None),
        };
        let sums = map.gradient_sums(&upstream, &stats.mean);
        // Through the statistics every value depends on the gradients of all processes.
        let all_sums = match shared {
            Some(world) => over_ranks(&sums, *world)?,
            None => Vec::new(),
        };
        let deviation = |c: usize| self.inverse_deviation(stats.var[c]);
        let dx = if x.track_op() {
            let weight = values(weight)?;
            let dx = map.planes_with(
                &upstream,
                #[inline(always)]
                |c, x, g, dx| {
                    let (mean, scale) = (stats.mean[c], deviation(c) * weight[c]);
                    if let Some((plain, product)) = all_sums.get(c) {
                        let mean_grad = (plain / stats.count) as f32;
                        let slope = (product / stats.count) as f32 * deviation(c) * deviation(c);
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
        let of_channels = |f: &dyn Fn(usize) -> f32| {
            Tensor::from_vec((0..channels).map(f).collect::<Vec<f32>>(), channels, &Device::Cpu)
                .map(Some)
        };
        let dw = if weight.track_op() {
            of_channels(&|c| sums[c].1 as f32 * deviation(c))?
        } else {
            None
        };
        let db = if bias.track_op() { of_channels(&|c| sums[c].0 as f32)? } else { None };
        Ok((dx, dw, db))
    }
}

/// The sums over all processes.
fn over_ranks(sums: &[(f64, f64)], world: World) -> Result<Vec<(f64, f64)>> {
    let mut flat: Vec<f64> = sums.iter().flat_map(|&(plain, product)| [plain, product]).collect();
    world.sum(&mut flat)?;
    Ok(flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

impl Fused {
    fn inverse_deviation(&self, var: f32) -> f32 {
        (1.0 / (f64::from(var) + self.eps).sqrt()) as f32
    }
}

/// Gradients of the outputs, and the outputs where they decide which gradients count.
struct Upstream<'a> {
    grads: &'a [f32],
    outputs: Option<&'a [f32]>,
}

impl Upstream<'_> {
    /// The gradient of one plane; `buffer` is used where it has to be masked.
    #[inline(always)]
    fn plane<'a>(&'a self, plane: usize, area: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        let grads = &self.grads[plane * area..][..area];
        let Some(outputs) = self.outputs else { return grads };
        let outputs = &outputs[plane * area..][..area];
        for ((b, &g), &y) in buffer.iter_mut().zip(grads).zip(outputs) {
            *b = if y > 0.0 { g } else { 0.0 };
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

impl Map<'_> {
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

    /// Mean and variance (divisor n) of every channel, the variance about the mean that was found; over the maps of all
    /// processes.
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

    /// For every channel Σ g and Σ g·(x − mean).
    fn gradient_sums(&self, upstream: &Upstream, mean: &[f32]) -> Vec<(f64, f64)> {
        let of_channel = |channel: usize| {
            let mut buffer = scratch(if upstream.outputs.is_some() { self.area } else { 0 });
            vectorised(
                #[inline(always)]
                || {
                    let (mut plain, mut product) = (0.0, 0.0);
                    for (plane, x) in self.planes(channel) {
                        let g = upstream.plane(plane, self.area, &mut buffer);
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
            let mut buffer = scratch(if upstream.outputs.is_some() { self.area } else { 0 });
            vectorised(
                #[inline(always)]
                || f(plane % self.channels, x, upstream.plane(plane, self.area, &mut buffer), out),
            );
        })
    }
}
