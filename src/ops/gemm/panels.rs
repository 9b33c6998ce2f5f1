//! Products whose factors and result lie in the first caches, as those of attention do: nothing is packed, and a panel of C, a few
//! rows and vectors, is summed in registers.

/// The loops for one instruction set.
#[derive(Debug)]
pub(crate) struct Panels {
    /// Rows of a panel: heights of C are multiples of it.
    pub(crate) rows: usize,
    /// Values of a vector: widths of B and C are multiples of it.
    pub(crate) lanes: usize,
    /// By rows and by columns of A, of one, two and three vectors.
    panels: [[Panel; VECTORS]; 2],
    transpose: unsafe fn(&[f32], usize, f32, &mut [f32]),
}

/// The most vectors of a panel's row.
pub(crate) const VECTORS: usize = 3;

/// The depth, the places of A, B and C and from one row of each to the next, and what becomes of the product.
type Panel = unsafe fn(usize, (*const f32, usize), (*const f32, usize), (*mut f32, usize), Then);

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is what C holds; what C held before is not read.
    Set,
    /// It is added to C.
    Add,
}

/// The left factor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row after row, so many values apart.
    Rows(&'a [f32], usize),
    /// The transposed matrix row after row, so many values apart.
    Columns(&'a [f32], usize),
}

impl Panels {
    /// Those that this machine can run, the best first.
    pub(crate) fn of_this_machine() -> impl Iterator<Item = &'static Self> {
        #[cfg(target_arch = "x86_64")]
        let special = super::kernels::runnable(&avx512::PANELS, &avx2::PANELS);
        #[cfg(not(target_arch = "x86_64"))]
        let special = [None];
        special.into_iter().flatten().chain([&portable::PANELS])
    }

    /// The best of them.
    pub(crate) fn best() -> &'static Self {
        Self::of_this_machine().next().unwrap_or(&portable::PANELS)
    }

    /// `C = A · B`, or `C += A · B`, for B and C of `width` columns, row after row.
    ///
    /// # Panics
    /// If C has no whole panels, or A is too small.
    pub(crate) fn multiply(&self, a: Left, b: &[f32], (c, width): (&mut [f32], usize), then: Then) {
        let (depth, height) = (b.len() / width, c.len() / width);
        let whole = height.is_multiple_of(self.rows) && width.is_multiple_of(self.lanes);
        assert!(
            whole && b.len() == depth * width && c.len() == height * width,
            "{depth}×{width} to {height}×{width} is no product in panels"
        );
        let (from, stride, (rows, columns), kind) = match a {
            Left::Rows(from, stride) => (from, stride, (height, depth), 0),
            Left::Columns(from, stride) => (from, stride, (depth, height), 1),
        };
        let last = rows.checked_sub(1).map_or(0, |last| last * stride + columns);
        assert!(columns <= stride && from.len() >= last, "A is too small");
        let vectors = width / self.lanes;
        let strip = vectors.div_ceil(vectors.div_ceil(VECTORS));
        for left in (0..vectors).step_by(strip) {
            let panel = self.panels[kind][strip.min(vectors - left) - 1];
            let left = left * self.lanes;
            for (i, c) in c.chunks_exact_mut(self.rows * width).enumerate() {
                let first = (i * self.rows * [stride, 1][kind]).min(from.len());
                // SAFETY: the machine has the instructions. A has the rows and columns of the product, B `depth` rows and C the
                // panel's of `width` values, of which the strip's begin at `left`.
                #[allow(unsafe_code)]
                unsafe {
                    let a = (from[first..].as_ptr(), stride);
                    let b = (b[left..].as_ptr(), width);
                    panel(depth, a, b, (c[left..].as_mut_ptr(), width), then);
                }
            }
        }
    }

    /// Writes `scale` times the columns of `from`, whose rows have `width` values, as rows.
    ///
    /// # Panics
    /// If `from` has no whole vectors in rows and columns, or `to` another size.
    pub(crate) fn transpose(&self, from: &[f32], width: usize, scale: f32, to: &mut [f32]) {
        let vectors =
            width.is_multiple_of(self.lanes) && from.len().is_multiple_of(self.lanes * width);
        assert!(vectors && from.len() == to.len(), "no whole blocks to be transposed");
        // SAFETY: the machine has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            (self.transpose)(from, width, scale, to);
        }
    }
}

macro_rules! panels {
    ($module:ident, $(#[$feature:meta],)? $lanes:literal lanes, $rows:literal rows, $vector:ty, $transpose:path,
     $($from:ident)::+ => $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $mul:ident, $fma:ident) => {
        mod $module {
            use std::sync::atomic::{Ordering, compiler_fence};

            use $($from)::+::*;

            use super::{Panels, Then};

            const LANES: usize = $lanes;
            const ROWS: usize = $rows;

            pub(super) static PANELS: Panels = Panels {
                rows: ROWS,
                lanes: LANES,
                panels: [
                    [panel::<false, 1>, panel::<false, 2>, panel::<false, 3>],
                    [panel::<true, 1>, panel::<true, 2>, panel::<true, 3>],
                ],
                transpose,
            };

            /// ROWS rows of VECTORS vectors of C. A's values of a step lie side by side (`COLUMNS`), or its steps do.
            ///
            /// # Safety
            /// The factors and the panel can be read and the panel be written.
            $(#[$feature])?
            #[allow(unsafe_code)]
            unsafe fn panel<const COLUMNS: bool, const VECTORS: usize>(
                depth: usize,
                (mut a, a_stride): (*const f32, usize),
                (mut b, b_stride): (*const f32, usize),
                (c, c_stride): (*mut f32, usize),
                then: Then,
            ) {
                let (row_stride, step_stride) = if COLUMNS { (1, a_stride) } else { (a_stride, 1) };
                let mut sums = [[$zero(); VECTORS]; ROWS];
                // SAFETY: the caller's promise.
                unsafe {
                    for _ in 0..depth {
                        let mut values = [$zero(); VECTORS];
                        for (i, values) in values.iter_mut().enumerate() {
                            *values = $load(b.add(i * LANES));
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let a = $splat(*a.add(row * row_stride));
                            for (sum, &values) in sums.iter_mut().zip(&values) {
                                *sum = $fma(a, values, *sum);
                            }
                        }
                        // Else values are read for several steps at once, and there are not enough registers.
                        compiler_fence(Ordering::SeqCst);
                        (a, b) = (a.wrapping_add(step_stride), b.wrapping_add(b_stride));
                    }
                    for (row, sums) in sums.iter().enumerate() {
                        for (i, &sum) in sums.iter().enumerate() {
                            let at = c.add(row * c_stride + i * LANES);
                            match then {
                                Then::Set => $store(at, sum),
                                Then::Add => $store(at, $add($load(at), sum)),
                            }
                        }
                    }
                }
            }

            /// In blocks of LANES × LANES.
            $(#[$feature])?
            fn transpose(from: &[f32], width: usize, scale: f32, to: &mut [f32]) {
                let (height, scale) = (from.len() / width, $splat(scale));
                for (row, rows) in from.chunks_exact(LANES * width).enumerate() {
                    for column in (0..width).step_by(LANES) {
                        let mut block = [$zero(); LANES];
                        for (block, from) in block.iter_mut().zip(rows.chunks_exact(width)) {
                            // SAFETY: a vector of the row.
                            #[allow(unsafe_code)]
                            unsafe {
                                *block = $load(from[column..column + LANES].as_ptr());
                            }
                        }
                        $transpose(&mut block);
                        for (i, &values) in block.iter().enumerate() {
                            let to = &mut to[(column + i) * height + row * LANES..][..LANES];
                            // SAFETY: a vector of the slice.
                            #[allow(unsafe_code)]
                            unsafe {
                                $store(to.as_mut_ptr(), $mul(values, scale));
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
panels!(
    avx512, #[target_feature(enable = "avx512f")], 16 lanes, 8 rows, __m512, super::super::kernels::transpose16,
    std::arch::x86_64 => _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_mul_ps,
    _mm512_fmadd_ps
);

#[cfg(target_arch = "x86_64")]
panels!(
    avx2, #[target_feature(enable = "avx2,fma")], 8 lanes, 4 rows, __m256, super::super::kernels::transpose8,
    std::arch::x86_64 => _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_mul_ps,
    _mm256_fmadd_ps
);

panels!(
    portable, 8 lanes, 4 rows, Vector, super::arrays::transpose,
    super::arrays => zero, splat, load, store, add, mul, multiply_add
);

/// Vectors for which the compiler finds the instructions.
mod arrays {
    pub(super) type Vector = [f32; 8];

    pub(super) fn zero() -> Vector {
        [0.0; 8]
    }

    pub(super) fn splat(value: f32) -> Vector {
        [value; 8]
    }

    /// # Safety
    /// There are as many values.
    #[allow(unsafe_code)]
    pub(super) unsafe fn load(from: *const f32) -> Vector {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Vector>().read_unaligned() }
    }

    /// # Safety
    /// There is room for as many values.
    #[allow(unsafe_code)]
    pub(super) unsafe fn store(to: *mut f32, values: Vector) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Vector>().write_unaligned(values) }
    }

    pub(super) fn add(a: Vector, b: Vector) -> Vector {
        std::array::from_fn(|i| a[i] + b[i])
    }

    pub(super) fn mul(a: Vector, b: Vector) -> Vector {
        std::array::from_fn(|i| a[i] * b[i])
    }

    pub(super) fn multiply_add(a: Vector, b: Vector, c: Vector) -> Vector {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    pub(super) fn transpose(rows: &mut [Vector; 8]) {
        let from = *rows;
        *rows = std::array::from_fn(|i| std::array::from_fn(|j| from[j][i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers, so every sum is exact.
    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn panels_are_the_product() {
        for panels in Panels::of_this_machine() {
            for (high, wide, depth) in
                [(1, 1, 5), (3, 2, 16), (2, 3, 1), (2, 4, 7), (1, 7, 3), (2, 2, 0)]
            {
                let (height, width) = (high * panels.rows, wide * panels.lanes);
                let (a, b) = (values((depth + 3) * height, 1), values(depth * width, 5));
                let columns = values((height + 1) * depth, 1);
                let old = values(height * width, 9);
                for (left, row, step) in [
                    (Left::Rows(&a, depth + 3), depth + 3, 1),
                    (Left::Columns(&columns, height + 1), 1, height + 1),
                ] {
                    let (Left::Rows(from, _) | Left::Columns(from, _)) = left;
                    for then in [Then::Set, Then::Add] {
                        let add = then == Then::Add;
                        let mut c = if add { old.clone() } else { vec![f32::NAN; height * width] };
                        panels.multiply(left, &b, (&mut c, width), then);
                        for (i, &found) in c.iter().enumerate() {
                            let (y, x) = (i / width, i % width);
                            let term = |k: usize| from[y * row + k * step] * b[k * width + x];
                            let sum =
                                (0..depth).map(term).sum::<f32>() + if add { old[i] } else { 0.0 };
                            assert_eq!(
                                found, sum,
                                "{y}, {x} of {height}×{depth}×{width}, {left:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn columns_become_rows() {
        for panels in Panels::of_this_machine() {
            let (height, width) = (2 * panels.lanes, 3 * panels.lanes);
            let from = values(height * width, 3);
            let mut to = vec![f32::NAN; height * width];
            panels.transpose(&from, width, 0.5, &mut to);
            for (i, &found) in to.iter().enumerate() {
                assert_eq!(found, 0.5 * from[i % height * width + i / height]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "no product in panels")]
    fn half_a_panel_is_refused() {
        let panels = Panels::best();
        let b = vec![0.0; panels.lanes];
        panels.multiply(
            Left::Rows(&[0.0; 8], 1),
            &b,
            (&mut vec![0.0; panels.lanes], panels.lanes),
            Then::Set,
        );
    }
}
