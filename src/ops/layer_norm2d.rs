//! Layer normalisation of maps over their channels (ViTDet's and ConvNeXt's channels-first norm).

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{Activation, at_least};
use super::host::{slice, values};
use super::rows::scratch;
use super::vector::{sum_of, vectorised};
use super::{count, fusible, layer_norm};

/// (x − mean) / √(var + eps) · weight + bias over the channels of every pixel, variance with divisor C, then the activation;
/// `x`: `[B, C, H, W]`, weight and bias `[C]`.
///
/// # Errors
/// If the channels do not agree.
pub fn layer_norm2d(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (_, channels, _, _) = x.dims4()?;
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!(
            "layer_norm2d: {channels} channels, weight {:?}, bias {:?}",
            weight.dims(),
            bias.dims()
        );
    }
    if fusible(&[x, weight, bias]) && x.elem_count() > 0 {
        let op = Fused { eps: eps as f32, activation, statistics: OnceLock::new() };
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    let rows = layer_norm(&x.permute((0, 2, 3, 1))?.contiguous()?, weight, bias, eps)?;
    let y = rows.permute((0, 3, 1, 2))?.contiguous()?;
    activation.composed(y)
}

/// Pixels whose sums are kept together: their values in all channels stay in a core's cache.
const PIXELS: usize = 128;

struct Fused {
    eps: f32,
    activation: Activation,
    /// Mean and 1 / √(var + eps) of every pixel, each `[B, H·W]`.
    statistics: OnceLock<[Vec<f32>; 2]>,
}

/// Fills two values per pixel: `f(first value of the pixels' first channel, both results)` for runs of neighbouring pixels.
fn per_pixel(
    images: usize,
    area: usize,
    f: impl Fn(usize, usize, &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f32>; 2] {
    let (mut a, mut b) = (vec![0.0; images * area], vec![0.0; images * area]);
    let both = a.par_chunks_exact_mut(area).zip(b.par_chunks_exact_mut(area)).enumerate();
    both.for_each(|(image, (a, b))| {
        let runs = a.par_chunks_mut(PIXELS).zip(b.par_chunks_mut(PIXELS)).enumerate();
        runs.for_each(|(run, (a, b))| f(image, run * PIXELS, a, b));
    });
    [a, b]
}

impl Fused {
    fn statistics(&self, x: &[f32], channels: usize, area: usize) -> [Vec<f32>; 2] {
        per_pixel(x.len() / (channels * area), area, |image, first, mean, scale| {
            let lines = || {
                let from = image * channels * area + first;
                (0..channels).map(move |c| &x[from + c * area..][..mean_len(area, first)])
            };
            vectorised(
                #[inline(always)]
                || {
                    let share = 1.0 / channels as f32;
                    for line in lines() {
                        mean.iter_mut().zip(line).for_each(|(m, x)| *m += x);
                    }
                    mean.iter_mut().for_each(|m| *m *= share);
                    for line in lines() {
                        for ((s, m), x) in scale.iter_mut().zip(mean.iter()).zip(line) {
                            *s += (x - m) * (x - m);
                        }
                    }
                    scale.iter_mut().for_each(|s| *s = 1.0 / (*s * share + self.eps).sqrt());
                },
            );
        })
    }

    /// The gradient behind the activation, of one plane.
    #[inline(always)]
    fn behind(&self, grad: f32, y: f32) -> f32 {
        match self.activation {
            Activation::Relu if y <= 0.0 => 0.0,
            _ => grad,
        }
    }
}

/// Pixels of a run that begins at `first`.
fn mean_len(area: usize, first: usize) -> usize {
    PIXELS.min(area - first)
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "layer_norm2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("layer_norm2d");
        let (x, weight, bias) = (slice(x, lx)?, slice(w, lw)?, slice(b, lb)?);
        let (_, channels, height, width) = lx.shape().dims4()?;
        let area = height * width;
        let statistics = self.statistics(x, channels, area);
        let [means, scales] = &statistics;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_exact_mut(area).zip(x.par_chunks_exact(area)).enumerate().for_each(
            |(plane, (y, x))| {
                let (image, c) = (plane / channels * area, plane % channels);
                let (means, scales) = (&means[image..][..area], &scales[image..][..area]);
                let floor = self.activation.floor();
                vectorised(
                    #[inline(always)]
                    || {
                        for (((y, &x), &m), &s) in y.iter_mut().zip(x).zip(means).zip(scales) {
                            *y = at_least(floor, ((x - m) * s).mul_add(weight[c], bias[c]));
                        }
                    },
                );
            },
        );
        // Only the first pass of this operation fills it; there is no second one.
        let _ = self.statistics.set(statistics);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        count("layer_norm2d.backward");
        let Some([means, scales]) = self.statistics.get() else {
            bail!("layer_norm2d: backward before forward")
        };
        let (images, channels, height, width) = x.dims4()?;
        let area = height * width;
        let grad = grad.contiguous()?;
        let (xs, ys, grads, weights) = (values(x)?, values(y)?, values(&grad)?, values(weight)?);
        let (xs, ys, grads): (&[f32], &[f32], &[f32]) = (&xs, &ys, &grads);
        // Means over the channels of d = g · weight and of d · x̂.
        let [offsets, slopes] = per_pixel(images, area, |image, first, offset, slope| {
            let count = mean_len(area, first);
            let (means, scales) =
                (&means[image * area + first..][..count], &scales[image * area + first..][..count]);
            vectorised(
                #[inline(always)]
                || {
                    for (c, &weight) in weights.iter().enumerate() {
                        let from = (image * channels + c) * area + first;
                        let (x, y, g) =
                            (&xs[from..][..count], &ys[from..][..count], &grads[from..][..count]);
                        for i in 0..count {
                            let d = self.behind(g[i], y[i]) * weight;
                            offset[i] += d;
                            slope[i] += d * (x[i] - means[i]) * scales[i];
                        }
                    }
                    let share = 1.0 / channels as f32;
                    offset.iter_mut().chain(slope.iter_mut()).for_each(|v| *v *= share);
                },
            );
        });
        let mut dx = vec![0.0; xs.len()];
        let sums: Vec<[f32; 2]> = dx
            .par_chunks_exact_mut(area)
            .enumerate()
            .map(|(plane, dx)| {
                let (image, c) = (plane / channels * area, plane % channels);
                let span = plane * area..(plane + 1) * area;
                let (x, y, g) = (&xs[span.clone()], &ys[span.clone()], &grads[span]);
                let (means, scales) = (&means[image..][..area], &scales[image..][..area]);
                let (offsets, slopes) = (&offsets[image..][..area], &slopes[image..][..area]);
                let mut normal = scratch(area);
                let mut own = scratch(area);
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..area {
                            normal[i] = (x[i] - means[i]) * scales[i];
                            own[i] = self.behind(g[i], y[i]);
                            let d = own[i] * weights[c];
                            dx[i] = scales[i] * (d - offsets[i] - normal[i] * slopes[i]);
                        }
                        [sum_of(&own, &normal, |g, n| g * n), sum_of(&own, &own, |g, _| g)]
                    },
                )
            })
            .collect();
        let total = |which: usize, like: &Tensor| -> Result<Option<Tensor>> {
            if !like.track_op() {
                return Ok(None);
            }
            let of = |c: usize| -> f32 {
                sums.iter().skip(c).step_by(channels).map(|s| f64::from(s[which])).sum::<f64>()
                    as f32
            };
            Tensor::from_vec((0..channels).map(of).collect::<Vec<_>>(), channels, &Device::Cpu)
                .map(Some)
        };
        let dx = x.track_op().then(|| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?;
        Ok((dx, total(0, weight)?, total(1, bias)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn the_composed_gradient_is_right() -> Result<()> {
        for activation in [Activation::None, Activation::Relu] {
            let f = |t: &[Tensor]| layer_norm2d(&t[0], (&t[1], &t[2]), 1e-6, activation);
            check(f, &[normal(&[2, 4, 2, 3], 1)?, normal(&[4], 2)?, normal(&[4], 3)?])?;
        }
        Ok(())
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for (shape, activation) in [
            ([2, 96, 13, 29], Activation::None),
            ([9, 256, 7, 7], Activation::Relu),
            ([1, 3, 1, 1], Activation::None),
        ] {
            let inputs = [random(&shape, 1)?, random(&shape[1..2], 2)?, random(&shape[1..2], 3)?];
            assert_twins("layer_norm2d", 3e-6, &inputs, |t| {
                layer_norm2d(&t[0], (&t[1], &t[2]), 1e-6, activation)
            })?;
        }
        Ok(())
    }
}
