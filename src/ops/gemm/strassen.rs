//! Large products by one step of Strassen's algorithm (Numerische Mathematik 13, 1969): of two by two blocks, seven products
//! instead of eight.
//!
//! The blocks are the quadrants of a tile of C, some vectors high and wide, and of what of A and B is multiplied for it. So the
//! sums of A's and B's quadrants are made where these are packed anyway, those of C's in the first-level cache, and no matrix is
//! written twice (Huang et al., "Strassen's Algorithm Reloaded", SC 2016). The error is about twice that of the plain sum, below
//! 2e-6 of the largest value of C; a value that is not finite spreads over its tile.

use std::marker::PhantomData;
use std::ops::Range;
use std::slice::from_raw_parts_mut;

use rayon::prelude::*;

use super::kernels::{Kernels, LINE, PRODUCTS, fetch};
use super::{Mat, MatMut};
use crate::ops::rows::{Scratch, scratch};
use crate::ops::vector::vectorised;

/// The most columns of A multiplied in one go: the packed columns of B stay in the second-level cache.
const DEPTH: usize = 768;

/// Tiles side by side that are computed from packed rows of A before the next rows are read.
const STRIPS: usize = 2;

/// Values of A's rows that are packed at a time, for all threads; 12 MiB.
const PACKED: usize = 3 << 20;

/// The loops for this machine, if a product of this size and these layouts gains by them.
pub(super) fn kernels_for(a: &Mat, b: &Mat) -> Option<&'static Kernels> {
    let dense = |m: &Mat| m.row_stride == 1 || m.col_stride == 1;
    let small: f32 = [a.rows, a.cols, b.cols].iter().map(|&side| (side as f32).recip()).sum();
    let pays = |kernels: &&Kernels| small <= kernels.pays && dense(a) && dense(b);
    Kernels::of_this_machine().next().filter(pays)
}

/// `C = alpha · A · B + beta · C` on `threads` threads; with `beta` 0 the old values of C are not read. The values of a row of C lie
/// side by side.
///
/// A is packed by all threads; then each takes some columns of B, packs and multiplies them, until there are none left. So nothing is
/// packed twice, and no thread waits long for a slower one.
pub(super) fn multiply(
    kernels: &Kernels,
    (alpha, a, b, beta): (f32, Mat, Mat, f32),
    c: MatMut,
    threads: usize,
) {
    let (height, width) = (2 * kernels.rows, 2 * kernels.columns);
    let k = a.cols.div_ceil(2 * a.cols.div_ceil(DEPTH)).next_multiple_of(kernels.lanes);
    let left = kernels.left_len(k);
    let (tiles, most) = (a.rows.div_ceil(height), (PACKED / left).max(1));
    let rows = tiles.div_ceil(tiles.div_ceil(most)) * height;
    let mut packed = Aligned::new(left * rows / height);
    let mut c = Rows::of(c);
    for depth in (0..a.cols).step_by(2 * k) {
        let beta = if depth == 0 { beta } else { 1.0 };
        for top in (0..a.rows).step_by(rows) {
            let own = top..a.rows.min(top + rows);
            let packed = &mut packed.get()[..left * own.len().div_ceil(height)];
            let tasks = own.clone().step_by(height).zip(packed.chunks_exact_mut(left));
            on_threads(threads, tasks.collect(), |(top, packed): (usize, &mut [f32])| {
                // Some rows more, so that the tile's last ones are read as vectors too.
                let a = a.part((top, height + kernels.lanes), (depth, 2 * k));
                kernels.pack_left(a, k, packed);
            });
            let tiles = Tiles { kernels, packed, k };
            // Few columns where there are few, so that no thread waits long for another.
            let few = threads > 1 && b.cols <= 8 * threads * STRIPS * width;
            let columns = if few { width } else { STRIPS * width };
            on_threads(threads, c.parts(own, columns), |(left, c)| {
                tiles.multiply((alpha, b.part((depth, 2 * k), (left, columns)), beta), c);
            });
        }
    }
}

/// Calls `f` with every task, on so many threads.
fn on_threads<T: Send>(threads: usize, tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
    match threads {
        1 => tasks.into_iter().for_each(f),
        _ => tasks.into_par_iter().with_max_len(1).for_each(f),
    }
}

/// Rows of A, packed in tiles of depth 2k.
struct Tiles<'a> {
    kernels: &'a Kernels,
    packed: &'a [f32],
    k: usize,
}

impl Tiles<'_> {
    /// `C = alpha · A · B + beta · C` for a few columns.
    fn multiply(&self, (alpha, b, beta): (f32, Mat, f32), mut c: Rows) {
        let Self { kernels, k, .. } = *self;
        let (height, width) = (2 * kernels.rows, 2 * kernels.columns);
        let (left, right) = (kernels.left_len(k), kernels.right_len(k));
        let b = b.t();
        let strips = (0..b.rows).step_by(width);
        let mut packed = Aligned::new(right * strips.len());
        for (strip, packed) in strips.clone().zip(packed.get().chunks_exact_mut(right)) {
            kernels.pack_right(b.part((strip, width), (0, 2 * k)), k, packed);
        }
        let mut tile = Aligned::new(height * width);
        let tile = tile.get();
        for (i, packed_a) in self.packed.chunks_exact(left).enumerate() {
            let rows = i * height..c.shape.0.min((i + 1) * height);
            for (strip, packed_b) in strips.clone().zip(packed.get().chunks_exact(right)) {
                let columns = strip..b.rows.min(strip + width);
                for i in 0..PRODUCTS {
                    // Few lines at a time, so that nothing waits for them.
                    for row in rows.clone().skip(i).step_by(PRODUCTS) {
                        fetch(c.part(row, columns.clone()));
                    }
                    kernels.product(i, k, packed_a, packed_b, tile);
                }
                add((alpha, tile, width), beta, (&mut c, rows.clone(), columns));
            }
        }
    }
}

/// Rows of C, the values of each side by side.
struct Rows<'a> {
    first: *mut f32,
    /// How many rows there are, and how long each is.
    shape: (usize, usize),
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for an exclusive borrow of its own values.
#[allow(unsafe_code)]
unsafe impl Send for Rows<'_> {}

impl<'a> Rows<'a> {
    fn of(c: MatMut<'a>) -> Self {
        let shape = (c.rows, c.cols);
        Self { first: c.data.as_mut_ptr(), shape, stride: c.row_stride, borrow: PhantomData }
    }

    /// Some of the rows, in parts of `width` columns, each with its first column's number.
    fn parts(&mut self, rows: Range<usize>, width: usize) -> Vec<(usize, Rows<'_>)> {
        assert!(rows.end <= self.shape.0);
        let part = |left: usize| {
            let first = self.first.wrapping_add(rows.start * self.stride + left);
            let shape = (rows.len(), width.min(self.shape.1 - left));
            (left, Rows { first, shape, stride: self.stride, borrow: PhantomData })
        };
        (0..self.shape.1).step_by(width).map(part).collect()
    }

    fn part(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.shape.0 && columns.end <= self.shape.1);
        let first = self.first.wrapping_add(row * self.stride + columns.start);
        // SAFETY: inside the matrix, and no other part has these values.
        #[allow(unsafe_code)]
        unsafe {
            from_raw_parts_mut(first, columns.len())
        }
    }
}

/// `c = alpha · tile + beta · c`.
fn add(
    (alpha, tile, width): (f32, &[f32], usize),
    beta: f32,
    (c, rows, columns): (&mut Rows, Range<usize>, Range<usize>),
) {
    vectorised(
        #[inline(always)]
        || {
            for (row, values) in rows.zip(tile.chunks_exact(width)) {
                let both = c.part(row, columns.clone()).iter_mut().zip(values);
                match beta {
                    0.0 => both.for_each(|(c, v)| *c = alpha * v),
                    1.0 => both.for_each(|(c, v)| *c += alpha * v),
                    _ => both.for_each(|(c, v)| *c = alpha * v + beta * *c),
                }
            }
        },
    );
}

/// A buffer whose first value begins a line of the cache.
struct Aligned {
    buffer: Scratch,
    skipped: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let buffer = scratch(len + LINE);
        let skipped = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
        Self { buffer, skipped }
    }

    fn get(&mut self) -> &mut [f32] {
        &mut self.buffer[self.skipped..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_product_within_two_millionths() {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0).collect()
        };
        // One tile and a bit; several blocks of rows, of columns and of depth.
        for (m, k, n) in [(25, 33, 65), (1201, 70, 150), (50, 1700, 200)] {
            let (a, b, old) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let row_major = (Mat::new(&a, m, k), Mat::new(&b, k, n));
            let column_major = (Mat::new(&a, k, m).t(), Mat::new(&b, n, k).t());
            for (a, b) in [row_major, column_major] {
                let sum = |row: usize, col: usize| -> f64 {
                    let term = |i| Some(f64::from(a.get(row, i)?) * f64::from(b.get(i, col)?));
                    (0..k).filter_map(term).sum()
                };
                let sums: Vec<f64> = (0..m * n).map(|i| sum(i / n, i % n)).collect();
                for (alpha, beta) in [(1.0f32, 0.0f32), (0.5, 1.0), (2.0, -0.5)] {
                    let right = sums.iter().zip(&old).map(|(sum, &old)| {
                        f64::from(alpha) * sum + f64::from(beta) * f64::from(old)
                    });
                    let right: Vec<f64> = right.collect();
                    let largest = right.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                    for kernels in Kernels::of_this_machine() {
                        // What must not be read when beta is 0.
                        let mut c = if beta == 0.0 { vec![f32::NAN; m * n] } else { old.clone() };
                        multiply(kernels, (alpha, a, b, beta), MatMut::new(&mut c, m, n), 1);
                        let far = c.iter().zip(&right).map(|(&c, r)| (f64::from(c) - r).abs());
                        let far = far.fold(0.0, f64::max) / largest;
                        assert!(far < 2e-6, "{far:e} in {m}×{k}×{n} with {alpha}, {beta}");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_and_blocks_of_rows_change_no_bit() {
        // Depths of several steps, and more rows than are packed at a time; pairs of strips on one thread, single ones on eight.
        let values = |count: usize| -> Vec<f32> {
            (0..count).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect()
        };
        for (m, k, n) in [(100, 1700, 1100), (PACKED / 500, 300, 70)] {
            let (a, b) = (values(m * k), values(k * n));
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
            for kernels in Kernels::of_this_machine() {
                let run = |threads| {
                    let mut c = vec![f32::NAN; m * n];
                    multiply(kernels, (1.0, a, b, 0.0), MatMut::new(&mut c, m, n), threads);
                    c
                };
                let one = run(1);
                assert!(one == run(8));
                let rows = m - m / 3..m;
                let mut c = vec![f32::NAN; rows.len() * n];
                let part = MatMut::new(&mut c, rows.len(), n);
                multiply(kernels, (1.0, a.part((rows.start, m), (0, k)), b, 0.0), part, 2);
                let far = c.iter().zip(&one[rows.start * n..]).map(|(a, b)| (a - b).abs());
                assert!(far.fold(0.0, f32::max) < 1e-5 * k as f32);
            }
        }
    }
}
