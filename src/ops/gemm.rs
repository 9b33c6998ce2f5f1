//! Matrix products over slices: `C = alpha · A · B + beta · C` in f32 with any strides, bounds checked.

use gemm::Parallelism;

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
#[allow(unsafe_code)]
pub fn gemm(alpha: f32, a: Mat, b: Mat, beta: f32, c: MatMut, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(
        b.rows == k && c.rows == m && c.cols == n,
        "{m}×{k} times {}×{n} does not give {}×{}",
        b.rows,
        c.rows,
        c.cols
    );
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::Pool => match rayon::current_num_threads() {
            1 => Parallelism::None,
            n => Parallelism::Rayon(n),
        },
    };
    // SAFETY: the constructors checked that every element lies inside its slice and that no two elements of C share a
    // place; C is borrowed exclusively, so it cannot overlap A or B.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            c.col_stride as isize,
            c.row_stride as isize,
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
            parallelism,
        );
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
    #[should_panic(expected = "leaves its 5 values")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        Mat::new(&[0.0; 5], 2, 3);
    }
}
