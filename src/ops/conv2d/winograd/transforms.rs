//! The small transforms of a tile, for a whole row of tiles at a time. The matrices are those of the points 0, ±1, ±2, ∞.

use super::{Finish, IN, OUT, POINTS};
use crate::ops::rows::filled;
use crate::ops::vector::vectorised;

/// Kernels that are transformed side by side.
const LANES: usize = 16;

/// BᵀdB of a row of tiles. `map`: one channel and its width; `origin`: the first row of pixels, which may lie in the
/// padding, and the zeros left of the map; `to`: point p of tile t goes to p · stride + t, for (slice, stride, tiles).
pub(super) fn transform_input(
    (map, width): (&[f32], usize),
    (first, left): (isize, usize),
    (to, stride, tiles): (&mut [f32], usize, usize),
    scratch: &mut Vec<f32>,
) {
    // One tile more: the last two inputs of a tile are the first of its neighbour.
    let (run, line) = (tiles + 1, (tiles + 1) * OUT);
    scratch.resize((2 * IN + 1) * line, 0.0);
    let (raw, rest) = scratch.split_at_mut(line);
    let (pixels, mixed) = rest.split_at_mut(IN * line);
    vectorised(
        #[inline(always)]
        || {
            for (i, pixels) in pixels.chunks_exact_mut(line).enumerate() {
                lay_out((map, width), first + i as isize, left, raw);
                to_runs(raw, pixels);
            }
            mix(pixels, mixed, line, input_points);
            let points = to.chunks_mut(IN * stride);
            for (line, points) in mixed.chunks_exact(line).zip(points) {
                let seen: [&[f32]; IN] =
                    std::array::from_fn(|j| &line[j % OUT * run + j / OUT..][..tiles]);
                combine(seen, lines_of(points, stride), tiles, input_points);
            }
        },
    );
}

/// A dY Aᵀ of a row of tiles, arguments as for [`transform_input`]; `first` is the first row of the gradient.
pub(super) fn spread_gradient(
    (grad, width): (&[f32], usize),
    first: usize,
    (to, stride, tiles): (&mut [f32], usize, usize),
    scratch: &mut Vec<f32>,
) {
    let line = tiles * OUT;
    scratch.resize((1 + OUT + IN) * line, 0.0);
    let (raw, rest) = scratch.split_at_mut(line);
    let (pixels, mixed) = rest.split_at_mut(OUT * line);
    vectorised(
        #[inline(always)]
        || {
            for (i, pixels) in pixels.chunks_exact_mut(line).enumerate() {
                lay_out((grad, width), (first + i) as isize, 0, raw);
                to_runs(raw, pixels);
            }
            mix(pixels, mixed, line, spread_points);
            for (line, points) in mixed.chunks_exact(line).zip(to.chunks_mut(IN * stride)) {
                let seen: [&[f32]; OUT] = std::array::from_fn(|j| &line[j * tiles..][..tiles]);
                combine(seen, lines_of(points, stride), tiles, spread_points);
            }
        },
    );
}

/// AᵀmA of a row of tiles, each value through `finish`, cut at the edge: `seen(p)` are the values of point p; `lines` is the
/// plane from the first row of pixels on, and its width.
pub(super) fn transform_output<'a>(
    seen: impl Fn(usize) -> &'a [f32],
    finish: Finish,
    (lines, width): (&mut [f32], usize),
    scratch: &mut Vec<f32>,
) {
    let tiles = seen(0).len();
    scratch.resize((OUT * IN + 2 * OUT) * tiles, 0.0);
    let (mixed, rest) = scratch.split_at_mut(OUT * IN * tiles);
    let (runs, line) = rest.split_at_mut(OUT * tiles);
    vectorised(
        #[inline(always)]
        || {
            for j in 0..IN {
                let column: [&[f32]; IN] = std::array::from_fn(|i| &seen(i * IN + j)[..tiles]);
                let mut to = mixed.chunks_exact_mut(tiles).skip(j).step_by(IN);
                let to: [&mut [f32]; OUT] = std::array::from_fn(|_| to.next().unwrap_or_default());
                combine(column, to, tiles, output_points);
            }
            for (i, target) in lines.chunks_mut(width).take(OUT).enumerate() {
                let row: [&[f32]; IN] =
                    std::array::from_fn(|j| &mixed[(i * IN + j) * tiles..][..tiles]);
                combine(row, lines_of(runs, tiles), tiles, |values| {
                    output_points(values).map(|v| finish.of(v))
                });
                from_runs(runs, line);
                target.copy_from_slice(&line[..target.len()]);
            }
        },
    );
}

/// The first `N` lines of `points`, `stride` apart.
#[inline(always)]
fn lines_of<const N: usize>(points: &mut [f32], stride: usize) -> [&mut [f32]; N] {
    let mut lines = points.chunks_mut(stride);
    std::array::from_fn(|_| lines.next().unwrap_or_default())
}

/// Four neighbours beside one another → the first of all fours, the second of all, …: `[t, k]` → `[k, t]`.
#[inline(always)]
fn to_runs(line: &[f32], runs: &mut [f32]) {
    let (fours, _) = line.as_chunks::<OUT>();
    let [a, b, c, d] = lines_of::<OUT>(runs, fours.len());
    for ((((four, a), b), c), d) in fours.iter().zip(a).zip(b).zip(c).zip(d) {
        [*a, *b, *c, *d] = *four;
    }
}

/// The inverse of [`to_runs`].
#[inline(always)]
fn from_runs(runs: &mut [f32], line: &mut [f32]) {
    let (fours, _) = line.as_chunks_mut::<OUT>();
    let [a, b, c, d] = lines_of::<OUT>(runs, fours.len());
    for ((((four, a), b), c), d) in fours.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *four = [*a, *b, *c, *d];
    }
}

/// Row `row` of a map with `left` zeros before it and zeros behind; zeros alone if it lies outside.
#[inline(always)]
fn lay_out((map, width): (&[f32], usize), row: isize, left: usize, to: &mut [f32]) {
    let source = usize::try_from(row).ok().and_then(|row| map.chunks_exact(width).nth(row));
    let Some(source) = source else { return to.fill(0.0) };
    let count = width.min(to.len() - left);
    to[..left].fill(0.0);
    to[left..left + count].copy_from_slice(&source[..count]);
    to[left + count..].fill(0.0);
}

/// Down the columns: the `N` lines of `from` → the `M` lines of `to`.
#[inline(always)]
fn mix<const N: usize, const M: usize>(
    from: &[f32],
    to: &mut [f32],
    line: usize,
    points: impl Fn([f32; N]) -> [f32; M],
) {
    let from: [&[f32]; N] = std::array::from_fn(|i| &from[i * line..][..line]);
    let mut to = to.chunks_exact_mut(line);
    let to: [&mut [f32]; M] = std::array::from_fn(|_| to.next().unwrap_or_default());
    combine(from, to, line, points);
}

/// `to[·][t] = points(from[·][t])`.
#[inline(always)]
fn combine<const N: usize, const M: usize>(
    from: [&[f32]; N],
    to: [&mut [f32]; M],
    count: usize,
    points: impl Fn([f32; N]) -> [f32; M],
) {
    // The loop over t becomes vector instructions only where every slice is known to be long enough.
    for line in &from {
        assert!(line.len() >= count);
    }
    for line in &to {
        assert!(line.len() >= count);
    }
    for t in 0..count {
        let mut seen = [0f32; N];
        for i in 0..N {
            seen[i] = from[i][t];
        }
        let values = points(seen);
        for i in 0..M {
            to[i][t] = values[i];
        }
    }
}

/// GgGᵀ of every kernel of `[O, C, 3, 3]`: `[O, point, C]`.
pub(super) fn kernel_transform(kernels: &[f32], channels: usize) -> Vec<f32> {
    filled(kernels.len() / 9 * POINTS, POINTS * channels, |o, to| {
        let kernels = &kernels[o * 9 * channels..][..9 * channels];
        vectorised(
            #[inline(always)]
            || {
                for (block, kernels) in kernels.chunks(9 * LANES).enumerate() {
                    let lanes = kernels.len() / 9;
                    let mut values = [[0f32; LANES]; 9];
                    for (lane, kernel) in kernels.chunks_exact(9).enumerate() {
                        for (k, value) in kernel.iter().enumerate() {
                            values[k][lane] = *value;
                        }
                    }
                    let mut rows = [[0f32; LANES]; 3 * IN];
                    for j in 0..3 {
                        for lane in 0..LANES {
                            let column = [values[j], values[3 + j], values[6 + j]];
                            let points = kernel_points(column.map(|value| value[lane]));
                            for i in 0..IN {
                                rows[3 * i + j][lane] = points[i];
                            }
                        }
                    }
                    for (i, row) in rows.as_chunks::<3>().0.iter().enumerate() {
                        let mut points = [[0f32; LANES]; IN];
                        for lane in 0..LANES {
                            let all = kernel_points([row[0][lane], row[1][lane], row[2][lane]]);
                            for j in 0..IN {
                                points[j][lane] = all[j];
                            }
                        }
                        for (j, points) in points.iter().enumerate() {
                            let at = (i * IN + j) * channels + block * LANES;
                            to[at..][..lanes].copy_from_slice(&points[..lanes]);
                        }
                    }
                }
            },
        );
    })
}

/// GᵀsG of every kernel of `[point, kernel]`: `[kernel, 3, 3]`.
pub(super) fn kernel_gradient(sums: &[f32]) -> Vec<f32> {
    let count = sums.len() / POINTS;
    filled(9 * count, 9 * LANES, |block, to| {
        let lanes = to.len() / 9;
        let mut points = [[0f32; LANES]; POINTS];
        for (point, values) in points.iter_mut().enumerate() {
            values[..lanes].copy_from_slice(&sums[point * count + block * LANES..][..lanes]);
        }
        vectorised(
            #[inline(always)]
            || {
                for (lane, kernel) in to.chunks_exact_mut(9).enumerate() {
                    let columns: [[f32; 3]; IN] = std::array::from_fn(|j| {
                        kernel_sums(std::array::from_fn(|i| points[i * IN + j][lane]))
                    });
                    for (i, row) in kernel.chunks_exact_mut(3).enumerate() {
                        row.copy_from_slice(&kernel_sums(columns.map(|column| column[i])));
                    }
                }
            },
        );
    })
}

/// Bᵀd.
#[inline(always)]
fn input_points([a, b, c, d, e, f]: [f32; IN]) -> [f32; IN] {
    let (even, odd) = ((-4f32).mul_add(c, e), (-4f32).mul_add(b, d));
    let (second, twice) = (e - c, 2.0 * (d - b));
    [
        4f32.mul_add(a, (-5f32).mul_add(c, e)),
        even + odd,
        even - odd,
        second + twice,
        second - twice,
        4f32.mul_add(b, (-5f32).mul_add(d, f)),
    ]
}

/// Aᵀm.
#[inline(always)]
fn output_points([a, b, c, d, e, f]: [f32; IN]) -> [f32; OUT] {
    let (ones, one, twos, two) = (b + c, b - c, d + e, d - e);
    [a + ones + twos, 2f32.mul_add(two, one), 4f32.mul_add(twos, ones), 8f32.mul_add(two, one) + f]
}

/// A y, the transpose of [`output_points`].
#[inline(always)]
fn spread_points([a, b, c, d]: [f32; OUT]) -> [f32; IN] {
    let (even, odd) = (a + c, b + d);
    let (fourth, twice) = (4f32.mul_add(c, a), 2.0 * 4f32.mul_add(d, b));
    [a, even + odd, even - odd, fourth + twice, fourth - twice, d]
}

/// G g.
#[inline(always)]
fn kernel_points([a, b, c]: [f32; 3]) -> [f32; IN] {
    let (sum, middle) = ((a + c) / 6.0, b / 6.0);
    let (far, half) = (a / 24.0 + c / 6.0, b / 12.0);
    [a / 4.0, -sum - middle, middle - sum, far + half, far - half, c]
}

/// Gᵀs, the transpose of [`kernel_points`].
#[inline(always)]
fn kernel_sums([a, b, c, d, e, f]: [f32; IN]) -> [f32; 3] {
    let (sum, difference) = (b + c, c - b);
    let (far, half) = (d + e, d - e);
    [a / 4.0 - sum / 6.0 + far / 24.0, difference / 6.0 + half / 12.0, (far - sum) / 6.0 + f]
}
