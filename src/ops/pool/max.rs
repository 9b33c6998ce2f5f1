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
            for (i, y) in y.iter_mut().enumerate() {
                *y = x[self.0.largest(x, (height, width), (i / size.1, i % size.1))];
            }
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
            for (i, g) in grads.iter().enumerate() {
                dx[self.0.largest(x, (height, width), (i / size.1, i % size.1))] += g;
            }
        });
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Windows {
    /// Where in a plane the first of the largest values of an output's window lies.
    fn largest(&self, x: &[f32], (height, width): (usize, usize), output: (usize, usize)) -> usize {
        let range = |output: usize, n: usize| {
            let start = output * self.stride;
            start.saturating_sub(self.padding)..(start + self.kernel - self.padding).min(n)
        };
        let (rows, columns) = (range(output.0, height), range(output.1, width));
        let mut best = rows.start * width + columns.start;
        for row in rows {
            for index in row * width + columns.start..row * width + columns.end {
                if x[index] > x[best] {
                    best = index;
                }
            }
        }
        best
    }
}
