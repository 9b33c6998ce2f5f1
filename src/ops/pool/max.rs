//! Max pooling that finds its maxima again in the backward pass instead of keeping them.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::Windows;
use crate::ops::count;
use crate::ops::host::{slice, values};

pub(super) struct MaxPool(pub(super) Windows);

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("max_pool2d");
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let size = (self.0.outputs(height), self.0.outputs(width));
        let x = slice(x, layout)?;
        let mut y = vec![0.0; batch * channels * size.0 * size.1];
        let planes =
            y.par_chunks_exact_mut(size.0 * size.1).zip(x.par_chunks_exact(height * width));
        planes.for_each(|(y, x)| {
            self.0.for_largest(x, (height, width), |output, _, value| y[output] = value);
        });
        Ok((CpuStorage::F32(y), Shape::from((batch, channels, size.0, size.1))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("max_pool2d.backward");
        let (_, _, height, width) = x.dims4()?;
        let size = (self.0.outputs(height), self.0.outputs(width));
        let grad = grad.contiguous()?;
        let mut dx = vec![0.0; x.elem_count()];
        let (xs, grads) = (values(x)?, values(&grad)?);
        let planes =
            dx.par_chunks_exact_mut(height * width).zip(xs.par_chunks_exact(height * width));
        planes.zip(grads.par_chunks_exact(size.0 * size.1)).for_each(|((dx, x), grads)| {
            self.0.for_largest(x, (height, width), |output, position, _| {
                dx[position] += grads[output]
            });
        });
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Windows {
    /// Calls `f(output, position, value)` for every output of a plane with the first of the largest values of its window.
    fn for_largest(
        &self,
        x: &[f32],
        (height, width): (usize, usize),
        mut f: impl FnMut(usize, usize, f32),
    ) {
        let range = |output: usize, n: usize| {
            let start = output * self.stride;
            start.saturating_sub(self.padding)..(start + self.kernel - self.padding).min(n)
        };
        let columns = self.outputs(width);
        for row in 0..self.outputs(height) {
            let rows = range(row, height);
            for column in 0..columns {
                let window = range(column, width);
                let mut best = rows.start * width + window.start;
                let mut value = x[best];
                for first in rows.clone().map(|row| row * width) {
                    for (v, at) in x[first + window.start..first + window.end]
                        .iter()
                        .zip(first + window.start..)
                    {
                        if *v > value {
                            (best, value) = (at, *v);
                        }
                    }
                }
                f(row * columns + column, best, value);
            }
        }
    }
}
