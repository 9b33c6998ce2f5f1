//! Self attention on the CPU, one tile of queries against all keys of a head at a time, so that the N × N weights never
//! leave the cache; of whole images or of windows, whose tokens are gathered while they are packed. The forward pass keeps the logarithm of each query's softmax sum; the backward pass computes the
//! weights again from it (Dao et al., *FlashAttention*, NeurIPS 2022, arXiv 2205.14135).

use std::marker::PhantomData;

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::relative_position::PlaceTable;
use super::rows::scratch;
use super::sequences::{Sequence, Sequences};
use super::vector::{exp, map_sum, max, sum_of, vectorised};

/// Weights in one tile: 256 KiB, half of a small second-level cache.
const TILE: usize = 1 << 16;

/// Queries in a tile of many keys, whose weights then fill more than that: with fewer, the passes over keys and values cost
/// more than is saved (of 4096 keys the gradient takes 1.5 times as long with 16).
const QUERIES: usize = 64;

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// How many.
    pub(crate) count: usize,
    /// Channels of each.
    pub(crate) width: usize,
}

impl Heads {
    /// Channels of the output.
    pub(crate) fn channels(self) -> usize {
        self.count * self.width
    }
}

/// What forward and backward pass of one layer work on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    /// Queries, keys and values of every token, `[tokens, 3C]`.
    pub(crate) qkv: &'a [f32],
    /// How the channels are divided.
    pub(crate) heads: Heads,
    /// Who attends to whom.
    pub(crate) sequences: &'a Sequences,
    /// Query, key and value of a place of padding, `[3C]`; empty where there is none.
    pub(crate) padding: &'a [f32],
    /// What places add to the scores; every sequence's keys are then the table's grid.
    pub(crate) places: Option<&'a PlaceTable>,
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

/// One head of one sequence.
struct Head<'a> {
    layer: Layer<'a>,
    sequence: &'a Sequence,
    column: usize,
}

impl<'a> Layer<'a> {
    /// All heads of all sequences, in the order of the logarithms that [`forward`] returns.
    fn each_head(self) -> impl Iterator<Item = Head<'a>> {
        let Heads { count, width } = self.heads;
        self.sequences.iter().flat_map(move |sequence| {
            (0..count).map(move |head| Head { layer: self, sequence, column: head * width })
        })
    }
}

impl Head<'_> {
    /// Queries per tile: equal tiles of at most [`TILE`] weights or [`QUERIES`] queries.
    fn tile(&self) -> usize {
        let (queries, keys) = (self.sequence.queries.len(), self.sequence.keys.len());
        let largest = (TILE / keys.max(1)).max(QUERIES);
        queries.div_ceil(queries.div_ceil(largest).max(1))
    }

    /// This head's channels of part `part` (0 query, 1 key, 2 value) of a token, or of padding.
    fn token(&self, part: usize, token: Option<usize>) -> &[f32] {
        let Layer { qkv, heads, padding, .. } = self.layer;
        let column = part * heads.channels() + self.column;
        match token {
            Some(token) => &qkv[token * 3 * heads.channels() + column..][..heads.width],
            None => &padding[column..][..heads.width],
        }
    }

    /// Writes the keys or values, one column per key, times `scale`: `[D, keys]`.
    fn pack_columns(&self, part: usize, scale: f32, to: &mut [f32]) {
        let keys = &self.sequence.keys;
        for (j, &key) in keys.iter().enumerate() {
            for (d, &v) in self.token(part, key).iter().enumerate() {
                to[d * keys.len() + j] = v * scale;
            }
        }
    }

    /// Writes the values, one row per key: `[keys, D]`.
    fn pack_values(&self, to: &mut [f32]) {
        for (row, &key) in to.chunks_exact_mut(self.layer.heads.width).zip(&self.sequence.keys) {
            row.copy_from_slice(self.token(2, key));
        }
    }

    /// Writes the queries of a tile, one per row.
    fn pack_queries(&self, tile: &[usize], to: &mut [f32]) {
        for (row, &query) in to.chunks_exact_mut(self.layer.heads.width).zip(tile) {
            row.copy_from_slice(self.token(0, Some(query)));
        }
    }

    /// Writes the scores of the packed `queries`, of which the sequence's query number `first` is the first, for the packed
    /// keys `k`.
    fn scores(&self, queries: &[f32], first: usize, k: Mat, scores: &mut [f32]) {
        let (width, keys) = (self.layer.heads.width, self.sequence.keys.len());
        let count = queries.len() / width;
        let product = MatMut::new(scores, count, keys);
        gemm(1.0, Mat::new(queries, count, width), k, 0.0, product, Threads::One);
        if let Some(places) = self.layer.places {
            places.add_scores(queries, |i| self.place(first + i), scores);
        }
        self.add_key_bias(scores);
    }

    /// Adds to every row of scores what its keys get.
    fn add_key_bias(&self, scores: &mut [f32]) {
        let of_tokens = self.layer.sequences.key_bias();
        if of_tokens.is_empty() {
            return;
        }
        let bias = |key: &Option<usize>| key.map_or(0.0, |token| of_tokens[token]);
        let bias: Vec<f32> = self.sequence.keys.iter().map(bias).collect();
        for row in scores.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(&bias).for_each(|(score, bias)| *score += bias);
        }
    }

    /// Row and column of a query in the grid of its keys.
    fn place(&self, query: usize) -> (usize, usize) {
        (query / self.sequence.columns, query % self.sequence.columns)
    }

    fn scale(&self) -> f32 {
        (self.layer.heads.width as f32).powf(-0.5)
    }

    /// Writes `values` times `factor` to this head's channels of part `part` of a token.
    #[allow(unsafe_code)]
    fn write_row(&self, to: &Columns, part: usize, token: usize, values: &[f32], factor: f32) {
        let heads = self.layer.heads;
        let column = part * heads.channels() + self.column;
        // SAFETY: each head of each sequence is one task, no two sequences share a query or a key, and no other task
        // touches this head's columns.
        let row = unsafe { to.segment(token, column, heads.width) };
        row.iter_mut().zip(values).for_each(|(to, v)| *to = v * factor);
    }
}

/// Writes the attention of the `layer` to `y` `[tokens, C]`, zeros where a sequence has no key; returns ln Σ exp(score) for every query of every head of every
/// sequence, one after the other.
pub(crate) fn forward(layer: Layer, y: &mut [f32]) -> Vec<f32> {
    let mut lse = vec![0.0; layer.sequences.tokens() * layer.heads.count];
    let y = Columns::new(y, layer.heads.channels());
    let mut rest = lse.as_mut_slice();
    let mut tasks = Vec::new();
    for head in layer.each_head() {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(head.sequence.queries.len());
        rest = others;
        tasks.push((head, own));
    }
    tasks.into_par_iter().for_each(|(head, lse)| forward_head(&head, lse, &y));
    lse
}

fn forward_head(head: &Head, lse: &mut [f32], y: &Columns) {
    let (width, keys, tile) = (head.layer.heads.width, head.sequence.keys.len(), head.tile());
    let (mut k, mut v) = (scratch(width * keys), scratch(width * keys));
    let (mut q, mut out) = (scratch(tile * width), scratch(tile * width));
    let (mut weights, mut sums) = (scratch(tile * keys), scratch(tile));
    if keys == 0 {
        out.fill(0.0);
        head.sequence.queries.iter().for_each(|&row| head.write_row(y, 0, row, &out, 1.0));
        return;
    }
    head.pack_columns(1, head.scale(), &mut k);
    head.pack_values(&mut v);
    for (i, (lse, rows)) in lse.chunks_mut(tile).zip(head.sequence.queries.chunks(tile)).enumerate()
    {
        let count = rows.len();
        let (q, out) = (&mut q[..count * width], &mut out[..count * width]);
        let weights = &mut weights[..count * keys];
        head.pack_queries(rows, q);
        head.scores(q, i * tile, Mat::new(&k, width, keys), weights);
        exponentiate(weights, &mut sums[..count], lse);
        let (weights, v) = (Mat::new(weights, count, keys), Mat::new(&v, keys, width));
        gemm(1.0, weights, v, 0.0, MatMut::new(out, count, width), Threads::One);
        // Dividing the outputs instead of the weights: D values per query, not N.
        for ((&row, out), sum) in rows.iter().zip(out.chunks_exact(width)).zip(&*sums) {
            head.write_row(y, 0, row, out, 1.0 / sum);
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

/// Writes the gradient of `layer.qkv` (to `dqkv`, which must hold zeros where a token is no key) for the gradient `grad`
/// `[tokens, C]` of the output; `lse` is what [`forward`] returned. The gradient of padding is dropped. Returns that of the
/// places' table where `wanted` asks for it.
pub(crate) fn backward(
    layer: Layer,
    lse: &[f32],
    grad: &[f32],
    dqkv: &mut [f32],
    wanted: TableGradient,
) -> Option<Vec<f32>> {
    let dqkv = Columns::new(dqkv, 3 * layer.heads.channels());
    let mut rest = lse;
    let mut tasks = Vec::new();
    for head in layer.each_head() {
        let (own, others) = rest.split_at(head.sequence.queries.len());
        rest = others;
        tasks.push((head, own));
    }
    let Some(places) = layer.places.filter(|_| wanted == TableGradient::Wanted) else {
        tasks.into_par_iter().for_each(|(head, lse)| backward_head(&head, lse, grad, &dqkv, None));
        return None;
    };
    let size = places.distances() * layer.heads.width;
    // Summed in the order of the tasks: the rounding must not depend on who did what.
    let parts: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .map(|(head, lse)| {
            let mut dtable = vec![0.0; size];
            backward_head(&head, lse, grad, &dqkv, Some(&mut dtable));
            dtable
        })
        .collect();
    let mut total = vec![0.0; size];
    for part in parts {
        total.iter_mut().zip(&part).for_each(|(t, p)| *t += p);
    }
    Some(total)
}

/// Whether [`backward`] returns the gradient of the places' table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableGradient {
    /// The table is trained.
    Wanted,
    /// It is frozen, or there is none.
    Dropped,
}

fn backward_head(
    head: &Head,
    lse: &[f32],
    grad: &[f32],
    dqkv: &Columns,
    mut dtable: Option<&mut [f32]>,
) {
    let (width, keys, tile) = (head.layer.heads.width, head.sequence.keys.len(), head.tile());
    if keys == 0 {
        return; // zeros, whatever the queries are
    }
    let (mut k, mut v) = (scratch(width * keys), scratch(width * keys));
    let (mut dk, mut dv) = (scratch(width * keys), scratch(width * keys));
    let (mut weights, mut dweights) = (scratch(tile * keys), scratch(tile * keys));
    let [mut q, mut g, mut dq] = [(); 3].map(|()| scratch(tile * width));
    head.pack_columns(1, head.scale(), &mut k);
    head.pack_columns(2, 1.0, &mut v);
    let (k, v) = (Mat::new(&k, width, keys), Mat::new(&v, width, keys));
    let channels = head.layer.heads.channels();
    for (i, (lse, rows)) in lse.chunks(tile).zip(head.sequence.queries.chunks(tile)).enumerate() {
        let count = rows.len();
        // The first tile overwrites what the buffers held before.
        let beta = if i == 0 { 0.0 } else { 1.0 };
        let (q, g) = (&mut q[..count * width], &mut g[..count * width]);
        let (weights, dweights) = (&mut weights[..count * keys], &mut dweights[..count * keys]);
        head.pack_queries(rows, q);
        for (g, row) in g.chunks_exact_mut(width).zip(rows) {
            g.copy_from_slice(&grad[row * channels + head.column..][..width]);
        }
        let (queries, g) = (Mat::new(q, count, width), Mat::new(g, count, width));
        head.scores(q, i * tile, k, weights);
        gemm(1.0, g, v, 0.0, MatMut::new(dweights, count, keys), Threads::One);
        score_gradient(weights, dweights, lse);
        let (weights, dscores) = (Mat::new(weights, count, keys), Mat::new(dweights, count, keys));
        gemm(1.0, weights.t(), g, beta, MatMut::new(&mut dv, keys, width), Threads::One);
        let product = MatMut::new(&mut dk, keys, width);
        gemm(head.scale(), dscores.t(), queries, beta, product, Threads::One);
        gemm(1.0, dscores, k.t(), 0.0, MatMut::new(&mut dq, count, width), Threads::One);
        if let Some(places) = head.layer.places {
            let place = |query| head.place(i * tile + query);
            let dq = &mut dq[..count * width];
            places.add_gradient((q, dweights), place, dq, dtable.as_deref_mut());
        }
        for (&row, dq) in rows.iter().zip(dq.chunks_exact(width)) {
            head.write_row(dqkv, 0, row, dq, 1.0);
        }
    }
    let keys = head.sequence.keys.iter();
    for ((key, dk), dv) in keys.zip(dk.chunks_exact(width)).zip(dv.chunks_exact(width)) {
        if let &Some(key) = key {
            head.write_row(dqkv, 1, key, dk, 1.0);
            head.write_row(dqkv, 2, key, dv, 1.0);
        }
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
