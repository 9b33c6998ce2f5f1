//! Self attention on the CPU, some queries against all keys of a head at a time, so that the N × N weights never leave the
//! cache; of whole images or of windows, whose tokens are gathered. The forward pass keeps the logarithm of each query's softmax
//! sum; the backward pass computes the weights again from it (Dao et al., *FlashAttention*, NeurIPS 2022, arXiv 2205.14135).
//!
//! Scores and weights lie transposed, `[keys, queries]`: a vector holds one key's for several queries, so the passes over keys
//! neither sum across a vector nor pack anything.

mod backward;
mod forward;

use std::marker::PhantomData;

pub(crate) use backward::{TableGradient, backward};
pub(crate) use forward::forward;

use super::gemm::{Panels, VECTORS};
use super::relative_position::{PlaceTable, Queries};
use super::rows::{Scratch, scratch};
use super::sequences::{Sequence, Sequences};

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

/// One head of one sequence, and the loops that work on it.
struct Head<'a> {
    layer: Layer<'a>,
    sequence: &'a Sequence,
    column: usize,
    panels: &'static Panels,
}

/// Which of a token's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Query,
    Key,
    Value,
}

impl<'a> Layer<'a> {
    /// All heads of all sequences, in the order of the logarithms that [`forward`] returns.
    fn each_head(self, panels: &'static Panels) -> impl Iterator<Item = Head<'a>> {
        let Heads { count, width } = self.heads;
        self.sequences.iter().flat_map(move |sequence| {
            (0..count).map(move |head| Head { layer: self, sequence, column: head * width, panels })
        })
    }
}

/// Queries that are worked on at a time.
struct Tile<'a> {
    /// The number of the first among the sequence's queries.
    first: usize,
    /// Their rows of the token matrix.
    rows: &'a [usize],
    /// `[lanes, width]`, zeros behind the last.
    queries: Scratch,
    /// Times the scale, `[width, lanes]`.
    scaled: Scratch,
    /// A whole number of vectors.
    lanes: usize,
}

impl Tile<'_> {
    /// The scaled queries of the head's own channels, `[D, lanes]`.
    fn scaled(&self, head: &Head) -> &[f32] {
        &self.scaled[..head.layer.heads.width * self.lanes]
    }

    /// The queries `[count, D]`, rows a whole number of vectors apart, and the places of each.
    fn at_places<'t>(&'t self, head: &'t Head) -> Queries<'t, impl Fn(usize) -> (usize, usize)> {
        let at = |i| head.place(self.first + i);
        Queries { rows: &self.queries, count: self.rows.len(), stride: head.width(), at }
    }
}

impl Head<'_> {
    /// Channels of a row, filled up with zeros to whole vectors.
    fn width(&self) -> usize {
        self.layer.heads.width.next_multiple_of(self.panels.lanes)
    }

    fn keys(&self) -> usize {
        self.sequence.keys.len()
    }

    /// Keys, filled up to whole panels.
    fn height(&self) -> usize {
        self.keys().next_multiple_of(self.panels.rows)
    }

    /// Queries in a tile.
    fn tile(&self) -> usize {
        VECTORS * self.panels.lanes
    }

    fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        let tiles = self.sequence.queries.chunks(self.tile()).enumerate();
        tiles.map(|(i, rows)| {
            let (lanes, width) = (rows.len().next_multiple_of(self.panels.lanes), self.width());
            let queries =
                self.gathered(rows.iter().map(|&row| self.token(Part::Query, row)), lanes);
            let mut scaled = scratch(lanes * width);
            self.panels.transpose(&queries, width, self.scale(), &mut scaled);
            Tile { first: i * self.tile(), rows, queries, scaled, lanes }
        })
    }

    /// The first of this head's channels of a part.
    fn channel(&self, part: Part) -> usize {
        part as usize * self.layer.heads.channels() + self.column
    }

    /// This head's channels of a part of a token.
    fn token(&self, part: Part, token: usize) -> &[f32] {
        let first = token * 3 * self.layer.heads.channels() + self.channel(part);
        &self.layer.qkv[first..][..self.layer.heads.width]
    }

    /// A part of all keys, padding among them, one per row: `[height, width]`.
    fn of_keys(&self, part: Part) -> Scratch {
        let rows = self.sequence.keys.iter().map(|key| match *key {
            Some(token) => self.token(part, token),
            None => &self.layer.padding[self.channel(part)..][..self.layer.heads.width],
        });
        self.gathered(rows, self.height())
    }

    /// `rows` below each other, filled up with zeros to `height` rows of whole vectors.
    fn gathered<'r>(
        &self,
        rows: impl ExactSizeIterator<Item = &'r [f32]>,
        height: usize,
    ) -> Scratch {
        let (width, used) = (self.width(), rows.len());
        let mut all = scratch(height * width);
        for (to, row) in all.chunks_exact_mut(width).zip(rows) {
            to[..row.len()].copy_from_slice(row);
            to[row.len()..].fill(0.0);
        }
        all[used * width..].fill(0.0);
        all
    }

    /// Adds to the `scores` `[keys, lanes]` of some keys, from number `first` on, what these keys get whoever asks.
    fn add_key_bias(&self, first: usize, scores: &mut [f32], lanes: usize) {
        let of_tokens = self.layer.sequences.key_bias();
        if of_tokens.is_empty() {
            return;
        }
        for (row, key) in scores.chunks_exact_mut(lanes).zip(&self.sequence.keys[first..]) {
            let bias = key.map_or(0.0, |token| of_tokens[token]);
            row.iter_mut().for_each(|score| *score += bias);
        }
    }

    /// Row and column of a query in the grid of its keys.
    fn place(&self, query: usize) -> (usize, usize) {
        (query / self.sequence.columns, query % self.sequence.columns)
    }

    fn scale(&self) -> f32 {
        (self.layer.heads.width as f32).powf(-0.5)
    }

    /// Writes `values` times `factor` to this head's channels of a part of a token.
    #[allow(unsafe_code)]
    fn write_row(&self, to: &Columns, part: Part, token: usize, values: &[f32], factor: f32) {
        // SAFETY: each head of each sequence is one task, no two sequences share a query or a key, and no other task
        // touches this head's columns.
        let row = unsafe { to.segment(token, self.channel(part), self.layer.heads.width) };
        row.iter_mut().zip(values).for_each(|(to, v)| *to = v * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::backward::backward_by;
    use super::forward::forward_by;
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0).collect()
    }

    fn far(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn every_instruction_set_gives_the_same() -> candle_core::Result<()> {
        // Windows of 3 × 4 with padding; a whole grid of several tiles and chunks of keys; heads of 5 and of 24 channels.
        for (grid, window, width) in [((7, 6), (3, 4), 5), ((15, 17), (15, 17), 24)] {
            let heads = Heads { count: 2, width };
            let sequences = Sequences::windows(1, grid, window);
            let table = |side: usize, seed| values((2 * side - 1) * width, seed);
            let (height, columns) = (table(window.0, 1), table(window.1, 2));
            let places = PlaceTable::from_values((&height, &columns), window)?;
            let channels = heads.channels();
            let (qkv, padding) =
                (values(grid.0 * grid.1 * 3 * channels, 3), values(3 * channels, 4));
            let grad = values(grid.0 * grid.1 * channels, 5);
            for places in [None, Some(&places)] {
                let layer =
                    Layer { qkv: &qkv, heads, sequences: &sequences, padding: &padding, places };
                let run = |panels| {
                    let (mut y, mut dqkv) = (vec![0.0; grad.len()], vec![0.0; qkv.len()]);
                    let lse = forward_by(panels, layer, &mut y);
                    let wanted = TableGradient::Wanted;
                    let dtable = backward_by(panels, layer, (&lse, &grad), &mut dqkv, wanted);
                    [y, lse, dqkv, dtable.unwrap_or_default()]
                };
                let mut all = Panels::of_this_machine().map(run);
                let best = all.next().unwrap();
                assert_eq!(best[3].is_empty(), places.is_none());
                for other in all {
                    for (a, b) in best.iter().zip(&other) {
                        assert!(a.len() == b.len() && far(a, b) < 2e-5, "{:e}", far(a, b));
                    }
                }
            }
        }
        Ok(())
    }
}
