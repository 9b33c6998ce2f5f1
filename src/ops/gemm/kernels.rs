//! The innermost loops of [`super::strassen`] for AVX-512 and for AVX2 with FMA: the only intrinsics of products.

use super::Mat;

/// How many products stand for the eight of two by two blocks.
pub(super) const PRODUCTS: usize = 7;

/// Values of a line of the cache.
pub(super) const LINE: usize = 16;

/// The loops for one instruction set. A tile of C has `2 · rows × 2 · columns` values; its four quadrants are what products in
/// registers are added to.
pub(super) struct Kernels {
    /// Rows of a product in registers.
    pub(super) rows: usize,
    /// Columns of a product in registers.
    pub(super) columns: usize,
    /// Values of a vector; depths are multiples of it.
    pub(super) lanes: usize,
    /// The largest 1/m + 1/k + 1/n for which the eighth of the multiplications that is saved exceeds what the sums cost, as measured.
    pub(super) pays: f32,
    pack_left: Pack,
    pack_right: Pack,
    product: Product,
}

/// Of loops for AVX-512 and for AVX2 with FMA those that this machine can run.
#[cfg(target_arch = "x86_64")]
pub(super) fn runnable<T>(wide: &'static T, narrow: &'static T) -> [Option<&'static T>; 2] {
    use std::arch::is_x86_feature_detected as has;
    let narrow = (has!("avx2") && has!("fma")).then_some(narrow);
    [has!("avx512f").then_some(wide), narrow]
}

type Pack = unsafe fn(Mat, usize, &mut [f32]);
type Product = unsafe fn(usize, &[f32], &[f32], &[Share; 4], &mut [f32]);

impl Kernels {
    /// Those that this machine can run, the best first.
    pub(super) fn of_this_machine() -> impl Iterator<Item = &'static Self> {
        #[cfg(target_arch = "x86_64")]
        let kernels = runnable(&avx512::KERNELS, &avx2::KERNELS);
        #[cfg(not(target_arch = "x86_64"))]
        let kernels = [None::<&Self>];
        kernels.into_iter().flatten()
    }

    /// Values of the packed rows of A for a tile, of depth 2k. Behind each sum there is room for a vector that is stored in whole.
    pub(super) fn left_len(&self, k: usize) -> usize {
        PRODUCTS * (k * self.rows + self.lanes)
    }

    /// Values of the packed columns of B for a tile, of depth 2k.
    pub(super) fn right_len(&self, k: usize) -> usize {
        PRODUCTS * k * self.columns
    }

    /// Writes the left factors of the seven products, sums of the quadrants of `a`, `[product][k][rows]`; what lies outside of `a`
    /// counts as zero.
    pub(super) fn pack_left(&self, a: Mat, k: usize, to: &mut [f32]) {
        assert!(k.is_multiple_of(self.lanes) && to.len() >= self.left_len(k));
        // SAFETY: the machine has the instructions, and there is room for what is written.
        #[allow(unsafe_code)]
        unsafe {
            (self.pack_left)(a, k, to);
        }
    }

    /// Writes the right factors of the seven products, sums of the quadrants of the transposed `b`, `[product][k][columns]`.
    pub(super) fn pack_right(&self, b: Mat, k: usize, to: &mut [f32]) {
        assert!(k.is_multiple_of(self.lanes) && to.len() >= self.right_len(k));
        // SAFETY: as in `pack_left`.
        #[allow(unsafe_code)]
        unsafe {
            (self.pack_right)(b, k, to);
        }
    }

    /// Adds product `i` of packed rows and columns to its quadrants of a tile, `[2 · rows][2 · columns]`; what the tile held before the
    /// first is not read.
    pub(super) fn product(
        &self,
        i: usize,
        k: usize,
        left: &[f32],
        right: &[f32],
        tile: &mut [f32],
    ) {
        let left = &left[i * (k * self.rows + self.lanes)..][..k * self.rows];
        let right = &right[i * k * self.columns..][..k * self.columns];
        assert!(k.is_multiple_of(self.lanes) && tile.len() >= 4 * self.rows * self.columns);
        // SAFETY: the machine has the instructions, and the slices hold what is read and written.
        #[allow(unsafe_code)]
        unsafe {
            (self.product)(k, left, right, &SHARES[i], tile);
        }
    }
}

/// Has values that are to be written soon brought into the cache.
#[inline]
pub(super) fn fetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: no memory is touched.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast());
        }
    }
}

/// What becomes of a product in a quadrant of C.
#[derive(Clone, Copy)]
enum Share {
    No,
    Set,
    Add,
    Subtract,
}

/// The shares of C11, C12, C21 and C22 in the products
/// (A11 + A22)(B11 + B22), (A21 + A22) B11, A11 (B12 − B22), A22 (B21 − B11), (A11 + A12) B22, (A21 − A11)(B11 + B12)
/// and (A12 − A22)(B21 + B22).
const SHARES: [[Share; 4]; PRODUCTS] = {
    use Share::{Add, No, Set, Subtract};
    [
        [Set, No, No, Set],
        [No, No, Set, Subtract],
        [No, Set, No, Add],
        [Add, No, Add, No],
        [Subtract, Add, No, No],
        [No, No, No, Add],
        [Add, No, No, No],
    ]
};

#[cfg(target_arch = "x86_64")]
macro_rules! kernels {
    ($module:ident, $feature:literal, $lanes:literal lanes, $rows:literal rows, pays $pays:literal, $vector:ty, $transpose:path,
     $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $fma:ident) => {
        mod $module {
            use std::arch::x86_64::*;
            use std::sync::atomic::{Ordering, compiler_fence};

            use super::{Kernels, Mat, PRODUCTS, Share};

            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * LANES;
            /// Steps of k by which values are fetched ahead.
            const AHEAD: usize = 64;

            pub(super) static KERNELS: Kernels = Kernels {
                rows: ROWS,
                columns: COLUMNS,
                lanes: LANES,
                pays: $pays,
                pack_left: pack::<true>,
                pack_right: pack::<false>,
                product,
            };

            /// One of the products, and what C gets of it.
            #[target_feature(enable = $feature)]
            fn product(k: usize, left: &[f32], right: &[f32], shares: &[Share; 4], to: &mut [f32]) {
                let mut sums = [[$zero(); 2]; ROWS];
                let (mut a, mut b) = (left.as_ptr(), right.as_ptr());
                // SAFETY: `k` is a multiple of the lanes, so of 4; `left` has k · ROWS values and `right` k · COLUMNS. Fetching
                // ahead touches no memory.
                #[allow(unsafe_code)]
                unsafe {
                    for _ in 0..k / 4 {
                        for step in 0..4 {
                            // Once for every line of 16 values.
                            if step * ROWS % 16 < ROWS {
                                let ahead = a.wrapping_add((AHEAD + step) * ROWS);
                                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                            }
                            let b = b.add(step * COLUMNS);
                            let (first, second) = ($load(b), $load(b.add(LANES)));
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let a = $splat(*a.add(step * ROWS + row));
                                sums[0] = $fma(a, first, sums[0]);
                                sums[1] = $fma(a, second, sums[1]);
                            }
                            // Else values are read for several steps at once, and there are not enough registers.
                            compiler_fence(Ordering::SeqCst);
                        }
                        (a, b) = (a.add(4 * ROWS), b.add(4 * COLUMNS));
                    }
                }
                for (quadrant, share) in shares.iter().enumerate() {
                    let first = quadrant / 2 * ROWS * 2 * COLUMNS + quadrant % 2 * COLUMNS;
                    let quadrant = to[first..].as_mut_ptr();
                    for (row, sums) in sums.iter().enumerate() {
                        for (half, &sum) in sums.iter().enumerate() {
                            // SAFETY: `to` has two quadrants of ROWS rows above each other and two of COLUMNS beside each other.
                            #[allow(unsafe_code)]
                            unsafe {
                                let at = quadrant.add(row * 2 * COLUMNS + half * LANES);
                                match share {
                                    Share::No => {}
                                    Share::Set => $store(at, sum),
                                    Share::Add => $store(at, $add($load(at), sum)),
                                    Share::Subtract => $store(at, $sub($load(at), sum)),
                                }
                            }
                        }
                    }
                }
            }

            /// The sums of quadrants of `from`, rows of A (`LEFT`) or of the transposed B, `[product][k][width]`: rows that are
            /// `width` apart, columns that are LANES apart. A store may spill over a narrow row; what is spilled over is written
            /// later, or is the room behind a sum.
            #[target_feature(enable = $feature)]
            fn pack<const LEFT: bool>(from: Mat, k: usize, to: &mut [f32]) {
                let (width, room) = if LEFT { (ROWS, LANES) } else { (COLUMNS, 0) };
                let size = k * width + room;
                let (lanes, depths) = (width.div_ceil(LANES), k / LANES);
                let mut quadrants = [[$zero(); LANES]; 4];
                for step in 0..lanes * depths {
                    // In the order of the values.
                    let (lane, depth) = match from.col_stride {
                        1 => (step / depths * LANES, step % depths * LANES),
                        _ => (step % lanes * LANES, step / lanes * LANES),
                    };
                    for (i, quadrant) in quadrants.iter_mut().enumerate() {
                        read(from, (lane + i / 2 * width, 2 * depth + i % 2 * LANES), quadrant);
                    }
                    let [q11, q12, q21, q22] = &quadrants;
                    for i in 0..LANES {
                        let (q11, q12, q21, q22) = (q11[i], q12[i], q21[i], q22[i]);
                        let sum = $add(q11, q22);
                        let sums: [$vector; PRODUCTS] = if LEFT {
                            let [both, step] = [$add(q21, q22), $sub(q21, q11)];
                            [sum, both, q11, q22, $add(q11, q12), step, $sub(q12, q22)]
                        } else {
                            // Transposed: B21 is q12.
                            let [first, second] = [$sub(q21, q22), $sub(q12, q11)];
                            [sum, q11, first, second, q22, $add(q11, q21), $add(q12, q22)]
                        };
                        let first = (depth + i) * width + lane;
                        for (product, &sum) in sums.iter().enumerate() {
                            let at = product * size + first;
                            // SAFETY: inside, the slice being so long.
                            #[allow(unsafe_code)]
                            unsafe {
                                $store(to[at..at + LANES].as_mut_ptr(), sum);
                            }
                        }
                    }
                }
            }

            /// LANES rows of `from` from `lane` on and as many columns from `depth` on, transposed; zeros outside.
            #[target_feature(enable = $feature)]
            #[inline]
            fn read(from: Mat, (lane, depth): (usize, usize), block: &mut [$vector; LANES]) {
                let inside = lane + LANES <= from.rows && depth + LANES <= from.cols;
                let first = from.data.as_ptr();
                let first = first.wrapping_add(lane * from.row_stride + depth * from.col_stride);
                match (from.row_stride, from.col_stride) {
                    (stride, 1) if inside => {
                        for (i, row) in block.iter_mut().enumerate() {
                            let at = first.wrapping_add(i * stride);
                            // SAFETY: inside the matrix, whose columns lie side by side; fetching ahead touches no memory.
                            #[allow(unsafe_code)]
                            unsafe {
                                *row = $load(at);
                                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                            }
                        }
                        $transpose(block);
                    }
                    (1, stride) if inside => {
                        for (i, column) in block.iter_mut().enumerate() {
                            let at = first.wrapping_add(i * stride);
                            // SAFETY: inside the matrix, whose rows lie side by side; fetching ahead touches no memory.
                            #[allow(unsafe_code)]
                            unsafe {
                                *column = $load(at);
                                // Into the second-level cache: the lines may all belong in one place of the first.
                                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD * stride).cast());
                            }
                        }
                    }
                    _ => {
                        for (i, column) in block.iter_mut().enumerate() {
                            let mut values = [0.0; LANES];
                            for (j, value) in values.iter_mut().enumerate() {
                                *value = from.get(lane + j, depth + i).unwrap_or(0.0);
                            }
                            // SAFETY: an array of that length.
                            #[allow(unsafe_code)]
                            unsafe {
                                *column = $load(values.as_ptr());
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(
    avx512, "avx512f", 16 lanes, 12 rows, pays 0.007, __m512, super::transpose16, _mm512_setzero_ps, _mm512_set1_ps,
    _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_fmadd_ps
);

#[cfg(target_arch = "x86_64")]
kernels!(
    avx2, "avx2,fma", 8 lanes, 6 rows, pays 0.0105, __m256, super::transpose8, _mm256_setzero_ps, _mm256_set1_ps,
    _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_fmadd_ps
);

/// Pairs of values, then pairs of pairs, then quarters. No closures: the compiler would not inline them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn transpose16(rows: &mut [std::arch::x86_64::__m512; 16]) {
    use std::arch::x86_64::*;
    let mut pairs = [_mm512_setzero_pd(); 16];
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
        pairs[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    }
    let mut fours = [_mm512_setzero_ps(); 16];
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i], pairs[i + 2]));
        fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i], pairs[i + 2]));
        fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i + 1], pairs[i + 3]));
        fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i + 1], pairs[i + 3]));
    }
    // Lane l of fours[4i + j] is column 4l + j of rows 4i to 4i + 3.
    for j in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
        let odd = _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]);
        let even_below = _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
        let odd_below = _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]);
        rows[j] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
        rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
        rows[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
        rows[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
    }
}

/// Pairs of values, then pairs of pairs, then halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn transpose8(rows: &mut [std::arch::x86_64::__m256; 8]) {
    use std::arch::x86_64::*;
    let mut pairs = [_mm256_setzero_pd(); 8];
    for i in (0..8).step_by(2) {
        pairs[i] = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
        pairs[i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    }
    let mut fours = [_mm256_setzero_ps(); 8];
    for i in (0..8).step_by(4) {
        fours[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(pairs[i], pairs[i + 2]));
        fours[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(pairs[i], pairs[i + 2]));
        fours[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(pairs[i + 1], pairs[i + 3]));
        fours[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(pairs[i + 1], pairs[i + 3]));
    }
    for j in 0..4 {
        rows[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
        rows[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_the_product_of_what_was_packed() {
        // Whole numbers, so every sum is exact. The last rows, columns and steps lie outside.
        let value = |i: usize| (i * 7919 % 13) as f32 - 6.0;
        for kernels in Kernels::of_this_machine() {
            let Kernels { rows, columns, lanes, .. } = *kernels;
            for (m, n, depth) in
                [(2 * rows, 2 * columns, 4 * lanes), (rows + 1, columns - 1, 3 * lanes + 1)]
            {
                let k = 2 * lanes;
                let a: Vec<f32> = (0..m * depth).map(value).collect();
                let b: Vec<f32> = (0..n * depth).map(|i| value(i + 5)).collect();
                for turned in [false, true] {
                    let (a, b) = match turned {
                        false => (Mat::new(&a, m, depth), Mat::new(&b, n, depth)),
                        true => (Mat::new(&a, depth, m).t(), Mat::new(&b, depth, n).t()),
                    };
                    let mut left = vec![f32::NAN; kernels.left_len(k)];
                    let mut right = vec![f32::NAN; kernels.right_len(k)];
                    let mut tile = vec![f32::NAN; 4 * rows * columns];
                    kernels.pack_left(a, k, &mut left);
                    kernels.pack_right(b, k, &mut right);
                    for i in 0..PRODUCTS {
                        kernels.product(i, k, &left, &right, &mut tile);
                    }
                    for (i, &found) in tile.iter().enumerate() {
                        let (row, column) = (i / (2 * columns), i % (2 * columns));
                        let term = |d: usize| Some(a.get(row, d)? * b.get(column, d)?);
                        let sum: f32 = (0..depth).filter_map(term).sum();
                        assert_eq!(found, sum, "{row}, {column} of {m}×{depth}×{n}, {turned}");
                    }
                }
            }
        }
    }
}
