//! Sums of products over the taps of a kernel: all three passes of a convolution.

use rayon::prelude::*;

use super::grid::Grid;
use crate::ops::epilogue::Epilogue;
use crate::ops::gemm::{Mat, MatMut, Threads, gemm};
use crate::ops::rows::{scratch, zeros};
use crate::ops::vector::vectorised;

/// Columns of one product: as many as keep the tile and what it reads in a core's cache.
const TILE: usize = 512;

/// One tap: which matrix meets which plane from where on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap {
    pub(super) matrix: usize,
    pub(super) phase: usize,
    pub(super) offset: usize,
}

/// `out[b, m, first + step·(i, j)] = epilogue(Σ_taps Σ_k matrix[m, k] · grid[b, k, offset + i·width + j])`.
pub(super) struct Product<'a> {
    pub(super) grid: &'a Grid<'a>,
    /// `[m, matrix, k]`.
    pub(super) matrices: &'a [f32],
    pub(super) m: usize,
    pub(super) taps: &'a [Tap],
    pub(super) epilogue: Epilogue<'a>,
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
        if self.is_plain() {
            return self.whole(out);
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

    /// Whether each image is one product whose result lies where it is wanted: that of a 1×1 kernel, or of patches.
    fn is_plain(&self) -> bool {
        let all = self.count == self.size && self.grid.plane == self.size.0 * self.size.1;
        let one = self.matrices.len() == self.m * self.grid.channels && self.taps.len() == 1;
        all && one && self.step == 1
    }

    /// [`Self::run`] without copies.
    fn whole(&self, out: &mut [f32]) {
        let (area, depth) = (self.grid.plane, self.grid.channels);
        let matrix = Mat::new(self.matrices, self.m, depth);
        let (bias, epilogue) = self.epilogue.split();
        if let Some(bias) = bias {
            let planes = out.par_chunks_exact_mut(area).enumerate();
            planes.for_each(|(plane, out)| out.fill(bias[plane % self.m]));
        }
        let beta = if bias.is_some() { 1.0 } else { 0.0 };
        for (image, out) in out.chunks_exact_mut(self.m * area).enumerate() {
            let seen = Mat::new(self.grid.phase(image, self.taps[0].phase), depth, area);
            gemm(1.0, matrix, seen, beta, MatMut::new(out, self.m, area), Threads::Pool);
        }
        if !epilogue.is_nothing() {
            out.par_chunks_exact_mut(area).enumerate().for_each(|(plane, out)| {
                let finish = epilogue.of(plane % self.m);
                vectorised(
                    #[inline(always)]
                    || out.iter_mut().for_each(|v| *v = finish.of(*v)),
                );
            });
        }
    }

    /// The channels from `first` on of one image, a tile of rows after another.
    fn channels(&self, image: usize, first: usize, out: &mut [f32]) {
        let width = self.grid.width;
        let channels = out.len() / (self.size.0 * self.size.1);
        let tiles = (self.count.0 * width).div_ceil(TILE);
        let rows = self.count.0.div_ceil(tiles);
        let mut tile = scratch(channels * rows * width);
        for row in (0..self.count.0).step_by(rows) {
            let rows = rows.min(self.count.0 - row);
            let columns = (rows - 1) * width + self.count.1;
            let tile = &mut tile[..channels * rows * width];
            let (bias, epilogue) = self.epilogue.split();
            let filled = bias.is_some() || self.taps.is_empty();
            if filled {
                for (c, line) in tile.chunks_exact_mut(rows * width).enumerate() {
                    line.fill(bias.map_or(0.0, |bias| bias[first + c]));
                }
            }
            for (i, tap) in self.taps.iter().enumerate() {
                let depth = self.grid.channels;
                let (every, at) =
                    (self.matrices.len() / self.m, first * self.matrices.len() / self.m);
                let matrix = &self.matrices[at + tap.matrix * depth..];
                let seen = &self.grid.phase(image, tap.phase)[tap.offset + row * width..];
                gemm(
                    1.0,
                    Mat::strided(matrix, (channels, depth), (every, 1)),
                    Mat::strided(seen, (depth, columns), (self.grid.plane, 1)),
                    if i == 0 && !filled { 0.0 } else { 1.0 },
                    MatMut::strided(tile, (channels, columns), (rows * width, 1)),
                    Threads::One,
                );
            }
            vectorised(
                #[inline(always)]
                || self.write((tile, first, epilogue), row, rows, out),
            );
        }
    }

    /// The channels from `first` on.
    #[inline(always)]
    fn write(
        &self,
        (tile, first, epilogue): (&[f32], usize, Epilogue),
        row: usize,
        rows: usize,
        out: &mut [f32],
    ) {
        let (width, (height, out_width)) = (self.grid.width, self.size);
        let planes = out.chunks_exact_mut(height * out_width).zip(tile.chunks_exact(rows * width));
        for (c, (out, tile)) in planes.enumerate() {
            let finish = epilogue.of(first + c);
            for (i, line) in tile.chunks_exact(width).enumerate() {
                let at = (self.first.0 + (row + i) * self.step) * out_width + self.first.1;
                let line = &line[..self.count.1];
                if self.step == 1 {
                    out[at..at + line.len()]
                        .iter_mut()
                        .zip(line)
                        .for_each(|(o, v)| *o = finish.of(*v));
                } else {
                    for (o, v) in out[at..].iter_mut().step_by(self.step).zip(line) {
                        *o = finish.of(*v);
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
    let mut out = zeros(taps.len() * depth * m);
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
