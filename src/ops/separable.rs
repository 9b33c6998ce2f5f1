//! Maps under one sparse matrix per axis: what resizing and average pooling have in common.

use candle_core::{Device, Result, Tensor};

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
    composed(x, rows, columns)
}

fn composed(x: &Tensor, rows: &Axis, columns: &Axis) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let across = x.reshape((batch * channels * height, width))?.matmul(&columns.matrix(x)?.t()?)?;
    let across = across.reshape((batch * channels, height, columns.rows.len()))?;
    let down = rows.matrix(x)?.unsqueeze(0)?.broadcast_matmul(&across)?;
    down.reshape((batch, channels, rows.rows.len(), columns.rows.len()))
}
