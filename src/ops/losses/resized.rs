//! Cross-entropy at the labels' resolution of logits at a lower one, without the logits in between.
//!
//! The image is worked on in bands of rows. A band upsamples the few rows of logits that it needs, and in the backward pass
//! brings its gradient back down to them; the full-size logits of 150 classes at 512 × 512, 157 MB per image and as much
//! again for their gradient, never exist.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::fused::{Targets, log_sum_exp};
use crate::ops::count;
use crate::ops::host::{slice, values};
use crate::ops::rows::{Scratch, scratch};
use crate::ops::separable::{Axis, Dense};
use crate::ops::vector::{exp, vectorised};

/// Rows of labels in a band.
const BAND: usize = 16;

/// The operation on logits `[B, K, h, w]`, giving the sum over all positions.
pub(super) struct ResizedCrossEntropy {
    targets: Targets,
    rows: Dense,
    columns: Dense,
    columns_back: Dense,
    /// Height and width of the logits.
    low: (usize, usize),
    log_sums: OnceLock<Vec<f32>>,
}

impl ResizedCrossEntropy {
    pub(super) fn new(targets: Targets, rows: &Axis, columns: &Axis) -> Self {
        Self {
            targets,
            rows: Dense::new(rows),
            columns: Dense::new(columns),
            columns_back: Dense::new(&columns.transposed()),
            low: (rows.inputs, columns.inputs),
            log_sums: OnceLock::new(),
        }
    }

    /// Height and width of the labels.
    fn high(&self) -> (usize, usize) {
        (self.rows.outputs(), self.columns.outputs())
    }

    fn bands(&self) -> usize {
        self.high().0.div_ceil(BAND)
    }

    /// The rows of logits under a band, widened to the labels' width: `[K, rows, W]`, the first row's number, their count.
    fn widened(&self, x: &[f32], band: usize) -> (Scratch, usize, usize) {
        let ((_, width), (low_height, low_width)) = (self.high(), self.low);
        let last = ((band + 1) * BAND).min(self.high().0) - 1;
        let first = self.rows.start[band * BAND];
        let count = self.rows.start[last] + self.rows.taps - first;
        let planes = x.chunks_exact(low_height * low_width);
        let mut wide = scratch(planes.len() * count * width);
        vectorised(
            #[inline(always)]
            || {
                for (wide, plane) in wide.chunks_exact_mut(count * width).zip(planes) {
                    let lines = plane[first * low_width..].chunks_exact(low_width);
                    for (wide, line) in wide.chunks_exact_mut(width).zip(lines) {
                        self.columns.along(line, wide);
                    }
                }
            },
        );
        (wide, first, count)
    }

    /// The logits `[K, W]` of row `row` from a band's widened rows.
    fn logits(&self, row: usize, wide: &[f32], (first, count): (usize, usize), logits: &mut [f32]) {
        let width = self.high().1;
        vectorised(
            #[inline(always)]
            || {
                for (logits, wide) in
                    logits.chunks_exact_mut(width).zip(wide.chunks_exact(count * width))
                {
                    self.rows.one_across(
                        row,
                        &wide[(self.rows.start[row] - first) * width..],
                        logits,
                    );
                }
            },
        );
    }

    /// Fills in the log-sums of a band and returns its loss.
    fn band_loss(&self, x: &[f32], image: usize, band: usize, log_sums: &mut [f32]) -> f64 {
        let (height, width) = self.high();
        let (wide, first, count) = self.widened(x, band);
        let mut logits = scratch(wide.len() / count);
        let mut loss = 0.0;
        for (i, log_sums) in log_sums.chunks_exact_mut(width).enumerate() {
            let row = band * BAND + i;
            self.logits(row, &wide, (first, count), &mut logits);
            log_sum_exp(&logits, width, log_sums);
            let at = (image * height + row) * width;
            let targets = self.targets.labels[at..].iter().zip(&self.targets.weights[at..]);
            for (column, (log_sum, (&label, weight))) in log_sums.iter().zip(targets).enumerate() {
                loss += f64::from(weight * (log_sum - logits[label as usize * width + column]));
            }
        }
        loss
    }

    /// The gradient of a band's loss: `[K, rows, w]` for the rows of logits under it, and the first row's number.
    fn band_gradient(&self, x: &[f32], image: usize, band: usize, grad: f32) -> (usize, Vec<f32>) {
        let ((height, width), low_width) = (self.high(), self.low.1);
        let (wide, first, count) = self.widened(x, band);
        let mut logits = scratch(wide.len() / count);
        let mut wide_grad = scratch(wide.len());
        wide_grad.fill(0.0);
        for row in band * BAND..((band + 1) * BAND).min(height) {
            self.logits(row, &wide, (first, count), &mut logits);
            let at = (image * height + row) * width;
            let log_sums = &self.log_sums.get().map_or(&[][..], Vec::as_slice)[at..][..width];
            let (labels, weights) =
                (&self.targets.labels[at..][..width], &self.targets.weights[at..][..width]);
            vectorised(
                #[inline(always)]
                || {
                    let classes = logits
                        .chunks_exact_mut(width)
                        .zip(wide_grad.chunks_exact_mut(count * width));
                    for (class, (logits, wide_grad)) in classes.enumerate() {
                        let positions = log_sums.iter().zip(labels).zip(weights);
                        for (x, ((&log_sum, &label), &weight)) in logits.iter_mut().zip(positions) {
                            let target = if label == class as u32 { 1.0 } else { 0.0 };
                            *x = grad * weight * (exp(*x - log_sum) - target);
                        }
                        let start = (self.rows.start[row] - first) * width;
                        self.rows.one_back(row, logits, &mut wide_grad[start..]);
                    }
                },
            );
        }
        let mut low = vec![0.0; wide.len() / width * low_width];
        vectorised(
            #[inline(always)]
            || {
                for (low, wide) in
                    low.chunks_exact_mut(low_width).zip(wide_grad.chunks_exact(width))
                {
                    self.columns_back.along(wide, low);
                }
            },
        );
        (first, low)
    }
}

impl CustomOp1 for ResizedCrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy_resized"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("cross_entropy_resized");
        let x = slice(x, layout)?;
        let (height, width) = self.high();
        let mut log_sums = vec![0.0; self.targets.labels.len()];
        let image_size = layout.shape().elem_count() / layout.dims()[0];
        let bands = log_sums.par_chunks_exact_mut(height * width).enumerate().flat_map(
            |(image, log_sums)| {
                let x = &x[image * image_size..][..image_size];
                let bands = log_sums.par_chunks_mut(BAND * width).enumerate();
                bands.map(move |(band, log_sums)| self.band_loss(x, image, band, log_sums))
            },
        );
        // Collected first: the order of the sum must not depend on the threads.
        let losses: Vec<f64> = bands.collect();
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(vec![losses.iter().sum::<f64>() as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("cross_entropy_resized.backward");
        let grad = grad.to_scalar::<f32>()?;
        let (height, width) = self.low;
        let (batch, classes, bands) = (x.dim(0)?, x.dim(1)?, self.bands());
        let xs = values(x)?;
        let xs: &[f32] = &xs;
        let image_size = classes * height * width;
        let mut dx = vec![0.0; xs.len()];
        // One image after another bounds the memory of what the bands return.
        for (image, dx) in dx.chunks_exact_mut(image_size).enumerate().take(batch) {
            let x = &xs[image * image_size..][..image_size];
            let parts =
                (0..bands).into_par_iter().map(|band| self.band_gradient(x, image, band, grad));
            for (first, part) in parts.collect::<Vec<_>>() {
                let rows = part.len() / classes;
                for (dx, part) in dx.chunks_exact_mut(height * width).zip(part.chunks_exact(rows)) {
                    dx[first * width..].iter_mut().zip(part).for_each(|(d, p)| *d += p);
                }
            }
        }
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}
