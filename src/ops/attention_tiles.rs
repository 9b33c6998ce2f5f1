//! Self attention on the CPU, one tile of queries against all keys of a head at a time, so that the N × N weights never
//! leave the cache. The forward pass keeps the logarithm of each query's softmax sum; the backward pass computes the
//! weights again from it (Dao et al., *FlashAttention*, NeurIPS 2022, arXiv 2205.14135).

use std::marker::PhantomData;

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::rows::scratch;
use super::vector::{exp, map_sum, max, sum_of, vectorised};

/// Weights in one tile: 256 KiB, half of a small second-level cache.
const TILE: usize = 1 << 16;

/// The sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Images.
    pub(crate) batch: usize,
    /// Tokens per image.
    pub(crate) tokens: usize,
    /// Heads.
    pub(crate) heads: usize,
    /// Channels per head.
    pub(crate) width: usize,
}

impl Heads {
    /// Rows of the token matrix.
    pub(crate) fn rows(self) -> usize {
        self.batch * self.tokens
    }

    /// Channels of the output.
    pub(crate) fn channels(self) -> usize {
        self.heads * self.width
    }

    /// Queries per tile: equal tiles of at most [`TILE`] weights.
    fn tile(self, keys: usize) -> usize {
        let largest = (TILE / keys.max(1)).max(16);
        self.tokens.div_ceil(self.tokens.div_ceil(largest).max(1))
    }
}

/// Which tokens may be keys.
#[derive(Debug, Clone)]
pub(crate) enum Keys {
    /// Every one.
    All,
    /// Those listed for each image, in rising order.
    Some(Vec<Vec<usize>>),
}

impl Keys {
    fn of_image(&self, image: usize, tokens: usize) -> Vec<usize> {
        match self {
            Keys::All => (0..tokens).collect(),
            Keys::Some(lists) => lists[image].clone(),
        }
    }
}

/// A row-major matrix of which several tasks write different column ranges.
struct Columns<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `segment` asks its callers to keep the ranges of different threads apart; the pointer comes from a slice that
// is borrowed exclusively as long as this lives.
#[allow(unsafe_code)]
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), stride, borrow: PhantomData }
    }

    /// Columns `column .. column + width` of a row.
    ///
    /// # Safety
    /// No other reference to these elements may exist while the result lives.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    unsafe fn segment(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        let start = row * self.stride + column;
        assert!(
            column + width <= self.stride && start + width <= self.len,
            "a segment outside of its matrix"
        );
        // SAFETY: inside the allocation by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), width) }
    }
}

/// One head of one image.
struct Head<'a> {
    rows: &'a [f32],
    dims: Heads,
    keys: Vec<usize>,
    first_row: usize,
    column: usize,
}

impl<'a> Head<'a> {
    fn new(task: usize, qkv: &'a [f32], dims: Heads, keys: &Keys) -> Self {
        let (image, head) = (task / dims.heads, task % dims.heads);
        Self {
            rows: qkv,
            dims,
            keys: keys.of_image(image, dims.tokens),
            first_row: image * dims.tokens,
            column: head * dims.width,
        }
    }

    /// Channels of part `part` (0 query, 1 key, 2 value) of a token.
    fn token(&self, part: usize, token: usize) -> &[f32] {
        let channels = self.dims.channels();
        let start = (self.first_row + token) * 3 * channels + part * channels + self.column;
        &self.rows[start..start + self.dims.width]
    }

    /// The queries from `first` on.
    fn queries(&self, first: usize, count: usize) -> Mat<'a> {
        let channels = self.dims.channels();
        let start = (self.first_row + first) * 3 * channels + self.column;
        Mat::strided(&self.rows[start..], (count, self.dims.width), (3 * channels, 1))
    }

    /// Writes the keys or values, one column per key, times `scale`: `[D, keys]`.
    fn pack_columns(&self, part: usize, scale: f32, to: &mut [f32]) {
        for (j, &key) in self.keys.iter().enumerate() {
            for (d, &v) in self.token(part, key).iter().enumerate() {
                to[d * self.keys.len() + j] = v * scale;
            }
        }
    }

    /// Writes the keys or values, one row per key: `[keys, D]`.
    fn pack_rows(&self, part: usize, to: &mut [f32]) {
        for (row, &key) in to.chunks_exact_mut(self.dims.width).zip(&self.keys) {
            row.copy_from_slice(self.token(part, key));
        }
    }

    fn scale(&self) -> f32 {
        (self.dims.width as f32).powf(-0.5)
    }

    /// Writes `values` times `factor` to this head's channels of part `part` of a token.
    #[allow(unsafe_code)]
    fn write_row(&self, to: &Columns, part: usize, token: usize, values: &[f32], factor: f32) {
        let column = part * self.dims.channels() + self.column;
        // SAFETY: each (image, head) is one task, and no other task touches this head's columns of this image's rows.
        let row = unsafe { to.segment(self.first_row + token, column, self.dims.width) };
        row.iter_mut().zip(values).for_each(|(to, v)| *to = v * factor);
    }
}

/// Writes the attention of `qkv` `[B·N, 3C]` to `y` `[B·N, C]`; returns ln Σ exp(score) for every query, `[B·H, N]`.
pub(crate) fn forward(qkv: &[f32], dims: Heads, keys: &Keys, y: &mut [f32]) -> Vec<f32> {
    let mut lse = vec![0.0; dims.batch * dims.heads * dims.tokens];
    let y = Columns::new(y, dims.channels());
    lse.par_chunks_mut(dims.tokens.max(1)).enumerate().for_each(|(task, lse)| {
        forward_head(&Head::new(task, qkv, dims, keys), lse, &y);
    });
    lse
}

fn forward_head(head: &Head, lse: &mut [f32], y: &Columns) {
    let (width, keys, tile) = (head.dims.width, head.keys.len(), head.dims.tile(head.keys.len()));
    let (mut k, mut v) = (scratch(width * keys), scratch(width * keys));
    let (mut weights, mut out, mut sums) =
        (scratch(tile * keys), scratch(tile * width), scratch(tile));
    head.pack_columns(1, head.scale(), &mut k);
    head.pack_rows(2, &mut v);
    for (i, lse) in lse.chunks_mut(tile).enumerate() {
        let (first, count) = (i * tile, lse.len());
        let scores = MatMut::new(&mut weights, count, keys);
        gemm(1.0, head.queries(first, count), Mat::new(&k, width, keys), 0.0, scores, Threads::One);
        exponentiate(&mut weights[..count * keys], &mut sums[..count], lse);
        let product = MatMut::new(&mut out, count, width);
        gemm(
            1.0,
            Mat::new(&weights, count, keys),
            Mat::new(&v, keys, width),
            0.0,
            product,
            Threads::One,
        );
        // Dividing the outputs instead of the weights: D values per query, not N.
        for (row, (out, sum)) in out.chunks_exact(width).zip(&sums[..count]).enumerate() {
            head.write_row(y, 0, first + row, out, 1.0 / sum);
        }
    }
}

/// Replaces scores by exp(score − row's maximum); writes the sum of each row and ln Σ exp(score).
fn exponentiate(scores: &mut [f32], sums: &mut [f32], lse: &mut [f32]) {
    let keys = scores.len() / sums.len().max(1);
    vectorised(
        #[inline(always)]
        || {
            for ((row, sum), lse) in scores.chunks_exact_mut(keys).zip(sums).zip(lse) {
                let largest = max(row);
                *sum = map_sum(row, |v| exp(v - largest));
                *lse = largest + sum.ln();
            }
        },
    );
}

/// Writes the gradient of `qkv` (to `dqkv`, which must hold zeros where a token is no key) for the gradient `grad`
/// `[B·N, C]` of the output; `lse` is what [`forward`] returned.
pub(crate) fn backward(
    (qkv, lse): (&[f32], &[f32]),
    grad: &[f32],
    dims: Heads,
    keys: &Keys,
    dqkv: &mut [f32],
) {
    let dqkv = Columns::new(dqkv, 3 * dims.channels());
    lse.par_chunks(dims.tokens.max(1)).enumerate().for_each(|(task, lse)| {
        backward_head(&Head::new(task, qkv, dims, keys), lse, grad, &dqkv);
    });
}

fn backward_head(head: &Head, lse: &[f32], grad: &[f32], dqkv: &Columns) {
    let (width, keys, tile) = (head.dims.width, head.keys.len(), head.dims.tile(head.keys.len()));
    let (mut k, mut v) = (scratch(width * keys), scratch(width * keys));
    let (mut dk, mut dv) = (scratch(width * keys), scratch(width * keys));
    let (mut weights, mut dweights, mut dq) =
        (scratch(tile * keys), scratch(tile * keys), scratch(tile * width));
    head.pack_columns(1, head.scale(), &mut k);
    head.pack_columns(2, 1.0, &mut v);
    let (k, v) = (Mat::new(&k, width, keys), Mat::new(&v, width, keys));
    let channels = head.dims.channels();
    for (i, lse) in lse.chunks(tile).enumerate() {
        let (first, count) = (i * tile, lse.len());
        // The first tile overwrites what the buffers held before.
        let beta = if i == 0 { 0.0 } else { 1.0 };
        let queries = head.queries(first, count);
        let start = (head.first_row + first) * channels + head.column;
        let g = Mat::strided(&grad[start..], (count, width), (channels, 1));
        let (weights, dweights) = (&mut weights[..count * keys], &mut dweights[..count * keys]);
        gemm(1.0, queries, k, 0.0, MatMut::new(weights, count, keys), Threads::One);
        gemm(1.0, g, v, 0.0, MatMut::new(dweights, count, keys), Threads::One);
        score_gradient(weights, dweights, lse);
        gemm(
            1.0,
            Mat::new(weights, count, keys).t(),
            g,
            beta,
            MatMut::new(&mut dv, keys, width),
            Threads::One,
        );
        let dscores = Mat::new(dweights, count, keys);
        gemm(
            head.scale(),
            dscores.t(),
            queries,
            beta,
            MatMut::new(&mut dk, keys, width),
            Threads::One,
        );
        gemm(1.0, dscores, k.t(), 0.0, MatMut::new(&mut dq, count, width), Threads::One);
        for (row, dq) in dq.chunks_exact(width).take(count).enumerate() {
            head.write_row(dqkv, 0, first + row, dq, 1.0);
        }
    }
    for ((&key, dk), dv) in head.keys.iter().zip(dk.chunks_exact(width)).zip(dv.chunks_exact(width))
    {
        head.write_row(dqkv, 1, key, dk, 1.0);
        head.write_row(dqkv, 2, key, dv, 1.0);
    }
}

/// Turns scores into weights p and their gradient dp into that of the scores, p (dp − Σ p dp).
fn score_gradient(weights: &mut [f32], dweights: &mut [f32], lse: &[f32]) {
    let keys = weights.len() / lse.len().max(1);
    vectorised(
        #[inline(always)]
        || {
            let rows = weights.chunks_exact_mut(keys).zip(dweights.chunks_exact_mut(keys));
            for ((p, dp), &lse) in rows.zip(lse) {
                p.iter_mut().for_each(|v| *v = exp(*v - lse));
                let mean = sum_of(p, dp, |p, dp| p * dp);
                dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = *p * (*dp - mean));
            }
        },
    );
}
