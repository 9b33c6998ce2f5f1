//! Sums of products over the taps of a kernel: all three passes of a convolution.

use rayon::prelude::*;

use super::grid::Grid;
use crate::ops::gemm::{Mat, MatMut, Threads, gemm};

/// Columns of one product: as many as keep the tile and what it reads in a core's cache.
const TILE: usize = 512;

/// One tap: which matrix meets which plane from where on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    pub(super) matrix: usize,
    pub(super) phase: usize,
    pub(super) offset: usize,
}

/// `out[b, m, first + step·(i, j)] = bias[m] + Σ_taps Σ_k matrix[m, k] · grid[b, k, offset + i·width + j]`.
pub(super) struct Product<'a> {
    pub(super) grid: &'a Grid<'a>,
    /// `[matrix, m, k]`.
    pub(super) matrices: &'a [f32],
    pub(super) m: usize,
    pub(super) taps: &'a [Tap],
    pub(super) bias: Option<&'a [f32]>,
    /// Rows and columns that are computed.
    pub(super) count: (usize, usize),
    /// Height and width of a plane of the result.
    pub(super) size: (usize, usize),
    /// Where in it the first goes.
    pub(super) first: (usize, usize),
    /// How far apart its neighbours are.
    pub(super) step: usize,
}

impl Product<'_> {
    /// Computes every image of `out` `[B, m, H, W]`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let area = self.size.0 * self.size.1;
        if out.is_empty() || self.count.0 * self.count.1 == 0 {
            return;
        }
        let images = out.len() / (self.m * area);
        let threads = rayon::current_num_threads();
        // As many blocks of channels as give every thread the same work.
        let block = self.m.div_ceil(threads / gcd(images, threads));
        out.par_chunks_exact_mut(self.m * area).enumerate().for_each(|(image, out)| {
            out.par_chunks_mut(block * area)
                .enumerate()
                .for_each(|(b, out)| self.channels(image, b * block, out));
        });
    }

    /// The channels from `first` on of one image, a tile of rows after another.
    fn channels(&self, image: usize, first: usize, out: &mut [f32]) {
        let width = self.grid.width;
        let channels = out.len() / (self.size.0 * self.size.1);
        let tiles = (self.count.0 * width).div_ceil(TILE);
        let rows = self.count.0.div_ceil(tiles);
        let mut tile = vec![0.0; channels * rows * width];
        for row in (0..self.count.0).step_by(rows) {
            let rows = rows.min(self.count.0 - row);
            let columns = (rows - 1) * width + self.count.1;
            let tile = &mut tile[..channels * rows * width];
            for (c, line) in tile.chunks_exact_mut(rows * width).enumerate() {
                line.fill(self.bias.map_or(0.0, |bias| bias[first + c]));
            }
            for tap in self.taps {
                let depth = self.grid.channels;
                let matrix =
                    &self.matrices[(tap.matrix * self.m + first) * depth..][..channels * depth];
                let seen = &self.grid.phase(image, tap.phase)[tap.offset + row * width..];
                gemm(
                    1.0,
                    Mat::new(matrix, channels, depth),
                    Mat::strided(seen, (depth, columns), (self.grid.plane, 1)),
                    1.0,
                    MatMut::strided(tile, (channels, columns), (rows * width, 1)),
                    Threads::One,
                );
            }
            self.write(tile, row, rows, out);
        }
    }

    fn write(&self, tile: &[f32], row: usize, rows: usize, out: &mut [f32]) {
        let (width, (height, out_width)) = (self.grid.width, self.size);
        for (out, tile) in
            out.chunks_exact_mut(height * out_width).zip(tile.chunks_exact(rows * width))
        {
            for (i, line) in tile.chunks_exact(width).enumerate() {
                let at = (self.first.0 + (row + i) * self.step) * out_width + self.first.1;
                let line = &line[..self.count.1];
                if self.step == 1 {
                    out[at..at + line.len()].copy_from_slice(line);
                } else {
                    for (o, v) in out[at..].iter_mut().step_by(self.step).zip(line) {
                        *o = *v;
                    }
                }
            }
        }
    }
}

/// `[tap, k, m]`: Σ over images and positions of grid[b, k, offset + position] · `grad`[b, position, m].
pub(super) fn weight_gradient(
    grid: &Grid,
    grad: &[f32],
    m: usize,
    taps: &[Tap],
    positions: usize,
) -> Vec<f32> {
    let depth = grid.channels;
    let images = grad.len() / (positions * m).max(1);
    let threads = rayon::current_num_threads();
    let block = depth.div_ceil(threads / gcd(taps.len(), threads));
    let mut out = vec![0.0; taps.len() * depth * m];
    out.par_chunks_exact_mut(depth * m).zip(taps).for_each(|(out, tap)| {
        out.par_chunks_mut(block * m).enumerate().for_each(|(b, out)| {
            let channels = out.len() / m;
            for image in 0..images {
                let seen = &grid.phase(image, tap.phase)[b * block * grid.plane + tap.offset..];
                gemm(
                    1.0,
                    Mat::strided(seen, (channels, positions), (grid.plane, 1)),
                    Mat::new(&grad[image * positions * m..][..positions * m], positions, m),
                    if image == 0 { 0.0 } else { 1.0 },
                    MatMut::new(out, channels, m),
                    Threads::One,
                );
            }
        });
    });
    out
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
