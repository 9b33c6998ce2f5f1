//! Maps under one sparse matrix per axis: what resizing and average pooling have in common.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::fresh::Fresh;
use super::host::values;
use super::rows::{filled, scratch};
use super::spent::spend;
use super::vector::vectorised;
use super::{count, fusible, gpu};

/// One output of an axis: weights on neighbouring inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Taps {
    /// The first input.
    pub(super) start: usize,
    /// Its weight and those of the inputs after it.
    pub(super) weights: Vec<f64>,
}

/// A matrix from the `inputs` samples of an axis to one sample per row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    /// How many samples go in.
    pub(super) inputs: usize,
    /// What each sample that comes out is made of.
    pub(super) rows: Vec<Taps>,
}

impl Axis {
    /// Collects weights by input; inputs that are named several times add up.
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        samples: impl Fn(usize) -> Vec<(usize, f64)>,
    ) -> Self {
        let row = |output: usize| {
            let samples = samples(output);
            let start = samples.iter().map(|&(input, _)| input).min().unwrap_or(0);
            let end = samples.iter().map(|&(input, _)| input + 1).max().unwrap_or(0);
            let mut weights = vec![0.0; end - start];
            for (input, weight) in samples {
                weights[input - start] += weight;
            }
            Taps { start, weights }
        };
        Self { inputs, rows: (0..outputs).map(row).collect() }
    }

    /// The matrix from the outputs back to the inputs.
    pub(super) fn transposed(&self) -> Self {
        let mut samples = vec![Vec::new(); self.inputs];
        for (output, taps) in self.rows.iter().enumerate() {
            for (k, &weight) in taps.weights.iter().enumerate() {
                samples[taps.start + k].push((output, weight));
            }
        }
        Self::new(self.rows.len(), self.inputs, |input| samples[input].clone())
    }

    /// The matrix `[outputs, inputs]` in full.
    fn matrix(&self, like: &Tensor) -> Result<Tensor> {
        let mut dense = vec![0f64; self.rows.len() * self.inputs];
        for (row, taps) in dense.chunks_exact_mut(self.inputs).zip(&self.rows) {
            row[taps.start..taps.start + taps.weights.len()].copy_from_slice(&taps.weights);
        }
        let shape = (self.rows.len(), self.inputs);
        Tensor::from_vec(dense, shape, &Device::Cpu)?
            .to_dtype(like.dtype())?
            .to_device(like.device())
    }
}

/// `x` `[B, C, H, W]` → `[B, C, rows, columns]`.
pub(super) fn separable(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    if fusible(&[x]) && x.elem_count() > 0 {
        return fused(x, rows, columns);
    }
    if gpu::runs(&[x]) && x.elem_count() > 0 {
        return gpu::separable(x, rows, columns);
    }
    composed(x, rows, columns)
}

fn fused(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    count("separable");
    let (batch, channels, _, _) = x.dims4()?;
    let x = x.contiguous()?;
    let y = run(&values(&x)?, rows, columns);
    let y = Fresh::on_cpu(y, (batch, channels, rows.rows.len(), columns.rows.len()));
    let (rows, columns) = (rows.clone(), columns.clone());
    y.with_gradient(&[&x], move |inputs, y, grad| {
        spend(y)?;
        count("separable.backward");
        let dx = run(&values(grad)?, &rows.transposed(), &columns.transposed());
        Ok(vec![Some(Tensor::from_vec(dx, inputs[0].shape(), &Device::Cpu)?)])
    })
}

fn composed(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let across = x.reshape((batch * channels * height, width))?.matmul(&columns.matrix(x)?.t()?)?;
    let across = across.reshape((batch * channels, height, columns.rows.len()))?;
    let down = rows.matrix(x)?.unsqueeze(0)?.broadcast_matmul(&across)?;
    down.reshape((batch, channels, rows.rows.len(), columns.rows.len()))
}

/// An axis with the same number of taps for every output.
pub(super) struct Dense {
    pub(super) taps: usize,
    /// The first input of every output.
    pub(super) start: Vec<usize>,
    /// `[outputs, taps]`.
    weights: Vec<f32>,
}

impl Dense {
    pub(super) fn new(axis: &Axis) -> Self {
        let taps = axis.rows.iter().map(|row| row.weights.len()).max().unwrap_or(0);
        let start: Vec<usize> =
            axis.rows.iter().map(|row| row.start.min(axis.inputs - taps)).collect();
        let mut weights = vec![0.0; taps * start.len()];
        for ((dense, row), start) in
            weights.chunks_exact_mut(taps.max(1)).zip(&axis.rows).zip(&start)
        {
            for (k, weight) in row.weights.iter().enumerate() {
                dense[row.start + k - start] = *weight as f32;
            }
        }
        Self { taps, start, weights }
    }

    pub(super) fn outputs(&self) -> usize {
        self.start.len()
    }

    /// `[outputs, taps]`.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// One line: y\[j\] = Σ weights\[j, t\] · x\[start\[j\] + t\].
    #[inline(always)]
    pub(super) fn along(&self, x: &[f32], y: &mut [f32]) {
        match self.taps {
            0 => y.fill(0.0),
            1 => self.along_few::<1>(x, y),
            2 => self.along_few::<2>(x, y),
            3 => self.along_few::<3>(x, y),
            4 => self.along_few::<4>(x, y),
            _ => {
                for ((y, weights), &start) in
                    y.iter_mut().zip(self.weights.chunks_exact(self.taps)).zip(&self.start)
                {
                    *y = weights.iter().zip(&x[start..start + self.taps]).map(|(w, x)| w * x).sum();
                }
            }
        }
    }

    #[inline(always)]
    fn along_few<const TAPS: usize>(&self, x: &[f32], y: &mut [f32]) {
        let (weights, _) = self.weights.as_chunks::<TAPS>();
        for ((y, weights), &start) in y.iter_mut().zip(weights).zip(&self.start) {
            let x = &x[start..start + TAPS];
            let mut sum = weights[0] * x[0];
            for t in 1..TAPS {
                sum = weights[t].mul_add(x[t], sum);
            }
            *y = sum;
        }
    }

    /// Lines of `width` values: each line of `y` is a weighted sum of lines of `x`.
    #[inline(always)]
    fn across(&self, x: &[f32], width: usize, y: &mut [f32]) {
        for (output, y) in y.chunks_exact_mut(width).enumerate() {
            self.one_across(output, &x[self.start[output] * width..], y);
        }
    }

    /// Line `output` from the lines of `x`, the first of which is the first that it needs.
    #[inline(always)]
    pub(super) fn one_across(&self, output: usize, x: &[f32], y: &mut [f32]) {
        let weights = &self.weights[output * self.taps..][..self.taps];
        let width = y.len();
        if weights.is_empty() {
            return y.fill(0.0);
        }
        if let [a, b] = *weights {
            let (first, second) = x.split_at(width);
            for ((y, &p), &q) in y.iter_mut().zip(first).zip(second) {
                *y = b.mul_add(q, a * p);
            }
            return;
        }
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = weights[0] * x);
        for (&weight, x) in weights.iter().zip(x.chunks_exact(width)).skip(1) {
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = weight.mul_add(x, *y));
        }
    }

    /// Adds the gradient `y` of line `output` to those of the lines that it was made of.
    #[inline(always)]
    pub(super) fn one_back(&self, output: usize, y: &[f32], x: &mut [f32]) {
        let weights = &self.weights[output * self.taps..][..self.taps];
        for (&weight, x) in weights.iter().zip(x.chunks_exact_mut(y.len())) {
            x.iter_mut().zip(y).for_each(|(x, &y)| *x = weight.mul_add(y, *x));
        }
    }
}

/// Every plane of `x`.
pub(super) fn run(x: &[f32], rows: &Axis, columns: &Axis) -> Vec<f32> {
    let planes = Planes::new(rows, columns);
    let (from, to) = (planes.inputs(), planes.outputs());
    // Enough planes at a time to outweigh the start of a task.
    let at_once = (1usize << 14).div_ceil(from + to);
    filled(x.len() / from * to, at_once * to, |i, out| {
        let x = x[i * at_once * from..].chunks_exact(from);
        vectorised(
            #[inline(always)]
            || out.chunks_exact_mut(to).zip(x).for_each(|(y, x)| planes.one(x, y)),
        );
    })
}

/// Adds every plane of `x` to those of `onto`.
pub(super) fn add(x: &[f32], rows: &Axis, columns: &Axis, onto: &mut [f32]) {
    let planes = Planes::new(rows, columns);
    let (from, to) = (planes.inputs(), planes.outputs());
    onto.par_chunks_exact_mut(to).zip(x.par_chunks_exact(from)).for_each(|(onto, x)| {
        let mut y = scratch(to);
        vectorised(
            #[inline(always)]
            || {
                planes.one(x, &mut y);
                onto.iter_mut().zip(&*y).for_each(|(onto, y)| *onto += y);
            },
        );
    });
}

/// Both axes of a plane.
struct Planes {
    rows: Dense,
    columns: Dense,
    height: usize,
    width: usize,
}

impl Planes {
    fn new(rows: &Axis, columns: &Axis) -> Self {
        let (height, width) = (rows.inputs, columns.inputs);
        Self { rows: Dense::new(rows), columns: Dense::new(columns), height, width }
    }

    /// Values of a plane that goes in.
    fn inputs(&self) -> usize {
        self.height * self.width
    }

    /// Values of one that comes out.
    fn outputs(&self) -> usize {
        self.rows.outputs() * self.columns.outputs()
    }

    /// One plane, first along the axis that leaves less to do along the other.
    #[inline(always)]
    fn one(&self, x: &[f32], y: &mut [f32]) {
        let Self { rows, columns, height, width } = self;
        let columns_out = columns.outputs();
        if rows.outputs() >= *height {
            let mut lines = scratch(height * columns_out);
            for (line, x) in lines.chunks_exact_mut(columns_out).zip(x.chunks_exact(*width)) {
                columns.along(x, line);
            }
            rows.across(&lines, columns_out, y);
        } else {
            let mut lines = scratch(rows.outputs() * width);
            rows.across(x, *width, &mut lines);
            for (y, line) in y.chunks_exact_mut(columns_out).zip(lines.chunks_exact(*width)) {
                columns.along(line, y);
            }
        }
    }
}
