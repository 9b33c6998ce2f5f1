//! Cross-entropy of every position in two passes over the logits, without keeping probabilities.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::ops::count;
use crate::ops::host::{slice, values};
use crate::ops::rows::scratch;
use crate::ops::vector::{exp, vectorised};

/// Positions that are worked on together: their logits of all classes stay in the second-level cache.
const BLOCK: usize = 512;

/// What every position is compared with.
pub(super) struct Targets {
    /// Classes; where the weight is 0 any valid one.
    pub(super) labels: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

/// The operation on logits `[B, K, …]`, giving `[B, …]`.
pub(super) struct CrossEntropyOp {
    pub(super) targets: Targets,
    /// ln Σ exp of the logits of every position, from the forward pass.
    pub(super) log_sums: OnceLock<Vec<f32>>,
}

impl CustomOp1 for CrossEntropyOp {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("cross_entropy");
        let mut dims = layout.dims().to_vec();
        let classes = dims.remove(1);
        let area: usize = dims[1..].iter().product();
        let x = slice(x, layout)?;
        let mut losses = vec![0.0; dims[0] * area];
        let mut log_sums = vec![0.0; dims[0] * area];
        let images = losses.par_chunks_exact_mut(area).zip(log_sums.par_chunks_exact_mut(area));
        images.enumerate().for_each(|(image, (losses, log_sums))| {
            let x = &x[image * classes * area..][..classes * area];
            let blocks =
                losses.par_chunks_mut(BLOCK).zip(log_sums.par_chunks_mut(BLOCK)).enumerate();
            blocks.for_each(|(block, (losses, log_sums))| {
                let first = block * BLOCK;
                log_sum_exp(&x[first..], area, log_sums);
                for (i, (loss, log_sum)) in losses.iter_mut().zip(log_sums).enumerate() {
                    let position = image * area + first + i;
                    let label = self.targets.labels[position] as usize;
                    *loss =
                        self.targets.weights[position] * (*log_sum - x[label * area + first + i]);
                }
            });
        });
        // A second forward pass through the same operation would find the same sums.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(losses), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("cross_entropy.backward");
        let classes = x.dim(1)?;
        let area = grad.elem_count() / x.dim(0)?;
        let grad = grad.contiguous()?;
        let (x_values, grads) = (values(x)?, values(&grad)?);
        let (xs, log_sums): (&[f32], _) =
            (&x_values, self.log_sums.get().map_or(&[][..], Vec::as_slice));
        let factors: Vec<f32> =
            grads.iter().zip(&self.targets.weights).map(|(g, w)| g * w).collect();
        let mut dx = vec![0.0; xs.len()];
        dx.par_chunks_exact_mut(area).zip(xs.par_chunks_exact(area)).enumerate().for_each(
            |(plane, (dx, x))| {
                let (image, class) = (plane / classes * area, (plane % classes) as u32);
                let (factors, log_sums) = (&factors[image..][..area], &log_sums[image..][..area]);
                vectorised(
                    #[inline(always)]
                    || {
                        let positions =
                            factors.iter().zip(log_sums).zip(&self.targets.labels[image..][..area]);
                        for ((d, &x), ((&factor, &log_sum), &label)) in
                            dx.iter_mut().zip(x).zip(positions)
                        {
                            *d = factor
                                * (exp(x - log_sum) - if label == class { 1.0 } else { 0.0 });
                        }
                    },
                );
            },
        );
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

/// ln Σ exp over lines that start `stride` apart, of as many positions as `out` has.
pub(super) fn log_sum_exp(x: &[f32], stride: usize, out: &mut [f32]) {
    let width = out.len();
    let mut largest = scratch(width);
    vectorised(
        #[inline(always)]
        || {
            let lines = || x.chunks(stride).map(|line| &line[..width.min(line.len())]);
            largest.fill(f32::NEG_INFINITY);
            for line in lines() {
                largest.iter_mut().zip(line).for_each(|(m, &x)| *m = if x > *m { x } else { *m });
            }
            out.fill(0.0);
            for line in lines() {
                out.iter_mut()
                    .zip(line)
                    .zip(largest.iter())
                    .for_each(|((s, &x), &m)| *s += exp(x - m));
            }
        },
    );
    out.iter_mut().zip(largest.iter()).for_each(|(s, m)| *s = m + s.ln());
}
