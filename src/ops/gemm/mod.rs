//! Matrix products over slices: `C = alpha · A · B + beta · C` in f32 with any strides, bounds checked.
//!
//! Large products are computed by Strassen's algorithm, the others by the library: every thread computes its own part of C and packs
//! what it needs for it, because the library's own threads would wait while one of them packs. What lies in the caches
//! already is multiplied in panels.

mod kernels;
mod panels;
mod strassen;

use gemm::Parallelism;
use rayon::prelude::*;

pub(crate) use panels::{Left, Panels, Then, VECTORS};

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// A matrix inside a slice, to be written.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Who works on one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products inside a parallel loop.
    One,
    /// All threads of the current rayon pool.
    Pool,
}

impl<'a> Mat<'a> {
    /// `rows × cols`, row after row.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, (rows, cols), (cols, 1))
    }

    /// `shape` = (rows, columns) with `strides` = (from row to row, from column to column), in elements.
    ///
    /// # Panics
    /// If the last element lies outside the slice.
    pub fn strided(data: &'a [f32], shape: (usize, usize), strides: (usize, usize)) -> Self {
        assert_inside(data.len(), shape, strides);
        Self { data, rows: shape.0, cols: shape.1, row_stride: strides.0, col_stride: strides.1 }
    }

    /// The transposed matrix; no copy.
    #[must_use]
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// At most `height` rows from `top` on and `width` columns from `left` on, as far as there are any.
    fn part(self, (top, height): (usize, usize), (left, width): (usize, usize)) -> Self {
        let (rows, cols) = (height.min(self.rows - top), width.min(self.cols - left));
        let first = top * self.row_stride + left * self.col_stride;
        let data = if rows * cols == 0 { &[] } else { &self.data[first..] };
        Self { data, rows, cols, ..self }
    }

    /// The value of a row and column, if there are so many.
    fn get(&self, row: usize, col: usize) -> Option<f32> {
        let inside = row < self.rows && col < self.cols;
        inside.then(|| self.data[row * self.row_stride + col * self.col_stride])
    }
}

impl<'a> MatMut<'a> {
    /// `rows × cols`, row after row.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, (rows, cols), (cols, 1))
    }

    /// `shape` = (rows, columns) with `strides` = (from row to row, from column to column), in elements.
    ///
    /// # Panics
    /// If the last element lies outside the slice, or if two elements would share a place.
    pub fn strided(data: &'a mut [f32], shape: (usize, usize), strides: (usize, usize)) -> Self {
        assert_inside(data.len(), shape, strides);
        let (rows, cols) = shape;
        let apart = rows <= 1
            || cols <= 1
            || strides.0 >= strides.1 * cols && strides.1 > 0
            || strides.1 >= strides.0 * rows && strides.0 > 0;
        assert!(apart, "the elements of a {rows}×{cols} matrix with strides {strides:?} overlap");
        Self { data, rows, cols, row_stride: strides.0, col_stride: strides.1 }
    }

    fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

fn assert_inside(
    len: usize,
    (rows, cols): (usize, usize),
    (row_stride, col_stride): (usize, usize),
) {
    let inside = rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len;
    assert!(
        inside,
        "a {rows}×{cols} matrix with strides ({row_stride}, {col_stride}) leaves its {len} values"
    );
}

/// `C = alpha · A · B + beta · C`; with `beta` 0 the old values of `C` are not read.
///
/// # Panics
/// If the shapes do not fit together.
pub fn gemm(alpha: f32, a: Mat, b: Mat, beta: f32, c: MatMut, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(
        b.rows == k && c.rows == m && c.cols == n,
        "{m}×{k} times {}×{n} does not give {}×{}",
        b.rows,
        c.rows,
        c.cols
    );
    // Row after row, whichever way that has to be read.
    if c.row_stride == 1 && c.col_stride != 1 {
        return gemm(alpha, b.t(), a.t(), beta, c.t(), threads);
    }
    let threads = match threads {
        Threads::One => 1,
        Threads::Pool => rayon::current_num_threads().min(m * k * n / WORTH_A_THREAD).max(1),
    };
    let kernels = if c.col_stride == 1 { strassen::kernels_for(&a, &b) } else { None };
    if let Some(kernels) = kernels {
        return strassen::multiply(kernels, (alpha, a, b, beta), c, threads);
    }
    let product = Product {
        alpha,
        a,
        b,
        beta,
        c: c.data.as_mut_ptr(),
        strides: (c.row_stride, c.col_stride),
    };
    let (high, wide) = parts((m, n), threads);
    let (height, width) = (share(m, high, BLOCK.0), share(n, wide, BLOCK.1));
    let (high, wide) = (m.div_ceil(height), n.div_ceil(width));
    let part = |i: usize| {
        let (top, left) = (i / wide * height, i % wide * width);
        product.part((top, height.min(m - top)), (left, width.min(n - left)));
    };
    match high * wide {
        1 => part(0),
        parts => (0..parts).into_par_iter().with_max_len(1).for_each(part),
    }
}

/// Multiply-adds below which another thread costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 18;

/// Rows and columns that the kernels compute at once, or a multiple of them.
const BLOCK: (usize, usize) = (24, 64);

/// Into how many parts of rows and of columns C is cut for `threads`: as many as threads, so that the copies which the
/// parts make of A and B (each of its rows and of its columns) are the smallest.
fn parts((m, n): (usize, usize), threads: usize) -> (usize, usize) {
    let cuts = (1..=threads).filter(|high| threads.is_multiple_of(*high));
    cuts.map(|high| (high, threads / high))
        .min_by_key(|(high, wide)| m * wide + n * high)
        .unwrap_or((1, 1))
}

/// The length of one of `parts` of `whole`, a multiple of `unit`.
fn share(whole: usize, parts: usize, unit: usize) -> usize {
    if parts == 1 { whole.max(1) } else { whole.div_ceil(parts).next_multiple_of(unit) }
}

/// A product whose result can be computed in parts.
struct Product<'a> {
    alpha: f32,
    a: Mat<'a>,
    b: Mat<'a>,
    beta: f32,
    c: *mut f32,
    strides: (usize, usize),
}

// SAFETY: `c` stands for an exclusive borrow that outlives the product, and parts that run at the same time write
// different elements of it.
#[allow(unsafe_code)]
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// The elements of C in `height` rows from `top` on and `width` columns from `left` on.
    #[allow(unsafe_code)]
    fn part(&self, (top, height): (usize, usize), (left, width): (usize, usize)) {
        let Self { alpha, a, b, beta, c, strides } = *self;
        let (a, b) = (a.part((top, height), (0, a.cols)), b.part((0, b.rows), (left, width)));
        let c = c.wrapping_add(top * strides.0 + left * strides.1);
        // SAFETY: the constructors checked that every element lies inside its slice and that no two elements of C share a
        // place, and `gemm` that the shapes fit and the part lies inside; C is borrowed exclusively, so it cannot overlap
        // A or B. A product without elements reads and writes nothing.
        unsafe {
            gemm::gemm(
                height,
                width,
                a.cols,
                c,
                strides.1 as isize,
                strides.0 as isize,
                beta != 0.0,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                beta,
                alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_by_hand() {
        // [1 2; 3 4] · [1 0; 1 1] = [3 2; 7 4], times 2, plus half of 10.
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 1.0, 1.0]);
        let mut c = [10.0; 4];
        gemm(
            2.0,
            Mat::new(&a, 2, 2),
            Mat::new(&b, 2, 2),
            0.5,
            MatMut::new(&mut c, 2, 2),
            Threads::One,
        );
        assert_eq!(c, [11.0, 9.0, 19.0, 13.0]);
        // The transposed first factor: [1 3; 2 4] · b = [4 3; 6 4]; what C held before (NaN) is not read.
        let mut c = [f32::NAN; 4];
        gemm(
            1.0,
            Mat::new(&a, 2, 2).t(),
            Mat::new(&b, 2, 2),
            0.0,
            MatMut::new(&mut c, 2, 2),
            Threads::Pool,
        );
        assert_eq!(c, [4.0, 3.0, 6.0, 4.0]);
    }

    #[test]
    fn parts_of_a_product_are_those_of_the_whole() {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
        };
        let sizes = [
            (1, 1, 1),
            (200, 64, 300),
            (301, 97, 83),
            (7, 900, 1500),
            (1500, 900, 7),
            // By Strassen's algorithm.
            (500, 400, 600),
        ];
        for (m, k, n) in sizes {
            let (a, b, old) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            for strides in [(n, 1), (1, m)] {
                let run = |threads| {
                    let mut c = old.clone();
                    let target = MatMut::strided(&mut c, (m, n), strides);
                    gemm(0.5, Mat::new(&a, m, k), Mat::new(&b, k, n), 1.0, target, threads);
                    c
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(6).build().unwrap();
                let apart = pool.install(|| run(Threads::Pool));
                let far = run(Threads::One).into_iter().zip(apart).map(|(x, y)| (x - y).abs());
                assert!(far.fold(0.0, f32::max) <= 1e-6 * k as f32, "{m}×{k}×{n} {strides:?}");
            }
        }
    }

    #[test]
    fn a_product_is_cut_where_the_least_is_packed_twice() {
        assert_eq!(parts((1025, 3072), 1), (1, 1));
        assert_eq!(parts((1025, 3072), 2), (1, 2));
        assert_eq!(parts((1025, 768), 2), (2, 1));
        assert_eq!(parts((1000, 1000), 4), (2, 2));
        assert_eq!(parts((4000, 64), 4), (4, 1));
    }

    #[test]
    #[should_panic(expected = "leaves its 5 values")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        Mat::new(&[0.0; 5], 2, 3);
    }
}
