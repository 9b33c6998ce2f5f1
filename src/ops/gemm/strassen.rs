//! Large products by one step of Strassen's algorithm (Numerische Mathematik 13, 1969): of two by two blocks, seven products
//! instead of eight.
//!
//! The blocks are the quadrants of a tile of C, some vectors high and wide, and of what of A and B is multiplied for it. So the
//! sums of A's and B's quadrants are made where these are packed anyway, those of C's in the first-level cache, and no matrix is
//! written twice (Huang et al., "Strassen's Algorithm Reloaded", SC 2016). The error is about twice that of the plain sum, below
//! 2e-6 of the largest value of C; a value that is not finite spreads over its tile.

use std::ops::Range;
use std::slice::from_raw_parts_mut;

use super::Mat;
use super::kernels::{Kernels, LINE, PRODUCTS, fetch};
use crate::ops::rows::{Scratch, scratch};
use crate::ops::vector::vectorised;

/// The most columns of A multiplied in one go: the packed columns of B stay in the second-level cache.
const DEPTH: usize = 768;

/// Tiles side by side that are computed from packed rows of A before the next rows are read.
const STRIPS: usize = 2;

/// The most rows of A that are packed at a time.
const ROWS: usize = 1152;

/// The loops for this machine, if a product of this size and these layouts gains by them.
pub(super) fn kernels_for(a: &Mat, b: &Mat) -> Option<&'static Kernels> {
    let dense = |m: &Mat| m.row_stride == 1 || m.col_stride == 1;
    let small: f32 = [a.rows, a.cols, b.cols].iter().map(|&side| (side as f32).recip()).sum();
    let pays = |kernels: &&Kernels| small <= kernels.pays && dense(a) && dense(b);
    Kernels::of_this_machine().next().filter(pays)
}

/// Rows of C, the values of each side by side.
pub(super) struct Rows {
    first: *mut f32,
    /// How many rows there are, and how long each is.
    shape: (usize, usize),
    stride: usize,
}

impl Rows {
    /// The rows of `shape`, `stride` values apart, from `first` on.
    ///
    /// # Safety
    /// Nobody else uses these values for as long as this lives.
    #[allow(unsafe_code)]
    pub(super) unsafe fn new(first: *mut f32, shape: (usize, usize), stride: usize) -> Self {
        Self { first, shape, stride }
    }

    fn part(&mut self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.shape.0 && columns.end <= self.shape.1);
        let first = self.first.wrapping_add(row * self.stride + columns.start);
        // SAFETY: inside, and borrowed from the only user.
        #[allow(unsafe_code)]
        unsafe {
            from_raw_parts_mut(first, columns.len())
        }
    }
}

/// `C = alpha · A · B + beta · C` on the calling thread; with `beta` 0 the old values of C are not read.
pub(super) fn multiply(kernels: &Kernels, (alpha, a, b, beta): (f32, Mat, Mat, f32), mut c: Rows) {
    let (height, width) = (2 * kernels.rows, 2 * kernels.columns);
    let k = a.cols.div_ceil(2 * a.cols.div_ceil(DEPTH)).next_multiple_of(kernels.lanes);
    let (left, right) = (kernels.left_len(k), kernels.right_len(k));
    let rows = a.rows.div_ceil(a.rows.div_ceil(ROWS)).next_multiple_of(height);
    let mut packed_a = Aligned::new(left * (rows / height));
    let mut packed_b = Aligned::new(right * STRIPS);
    let mut tile = Aligned::new(height * width);
    let b = b.t();
    for depth in (0..a.cols).step_by(2 * k) {
        let beta = if depth == 0 { beta } else { 1.0 };
        for top in (0..a.rows).step_by(rows) {
            let tops = (top..a.rows.min(top + rows)).step_by(height);
            for (top, packed) in tops.clone().zip(packed_a.get().chunks_exact_mut(left)) {
                // Some rows more, so that the tile's last ones are read as vectors too.
                let a = a.part((top, height + kernels.lanes), (depth, 2 * k));
                kernels.pack_left(a, k, packed);
            }
            for first in (0..b.rows).step_by(STRIPS * width) {
                let strips = (first..b.rows.min(first + STRIPS * width)).step_by(width);
                for (strip, packed) in strips.clone().zip(packed_b.get().chunks_exact_mut(right)) {
                    kernels.pack_right(b.part((strip, width), (depth, 2 * k)), k, packed);
                }
                for (top, packed_a) in tops.clone().zip(packed_a.get().chunks_exact(left)) {
                    for (strip, packed_b) in strips.clone().zip(packed_b.get().chunks_exact(right))
                    {
                        let columns = strip..b.rows.min(strip + width);
                        let rows = top..a.rows.min(top + height);
                        for i in 0..PRODUCTS {
                            // Few lines at a time, so that nothing waits for them.
                            for row in rows.clone().skip(i).step_by(PRODUCTS) {
                                fetch(c.part(row, columns.clone()));
                            }
                            kernels.product(i, k, packed_a, packed_b, tile.get());
                        }
                        add((alpha, tile.get(), width), beta, (&mut c, rows, columns));
                    }
                }
            }
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
                        // SAFETY: the vector is not used meanwhile.
                        #[allow(unsafe_code)]
                        let rows = unsafe { Rows::new(c.as_mut_ptr(), (m, n), n) };
                        multiply(kernels, (alpha, a, b, beta), rows);
                        let far = c.iter().zip(&right).map(|(&c, r)| (f64::from(c) - r).abs());
                        let far = far.fold(0.0, f64::max) / largest;
                        assert!(far < 2e-6, "{far:e} in {m}×{k}×{n} with {alpha}, {beta}");
                    }
                }
            }
        }
    }
}
