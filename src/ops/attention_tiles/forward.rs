//! softmax(q kᵀ / √D) v, the softmax's sums kept up while the keys pass by.

use rayon::prelude::*;

use super::{Columns, Head, Layer, Part};
use crate::ops::gemm::{Left, Panels, Then};
use crate::ops::rows::scratch;
use crate::ops::vector::{exp, vectorised};

/// Keys whose weights for a tile of queries stay in the first-level cache.
const KEYS: usize = 128;

/// Writes the attention of the `layer` to `y` `[tokens, C]`, zeros where a sequence has no key; returns ln Σ exp(score) for every
/// query of every head of every sequence, one after the other.
pub(crate) fn forward(layer: Layer, y: &mut [f32]) -> Vec<f32> {
    forward_by(Panels::best(), layer, y)
}

pub(super) fn forward_by(panels: &'static Panels, layer: Layer, y: &mut [f32]) -> Vec<f32> {
    let mut lse = vec![0.0; layer.sequences.tokens() * layer.heads.count];
    let y = Columns::new(y, layer.heads.channels());
    let mut rest = lse.as_mut_slice();
    let mut tasks = Vec::new();
    for head in layer.each_head(panels) {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(head.sequence.queries.len());
        rest = others;
        tasks.push((head, own));
    }
    tasks.into_par_iter().for_each(|(head, lse)| forward_head(&head, lse, &y));
    lse
}

fn forward_head(head: &Head, lse: &mut [f32], y: &Columns) {
    let (width, panels) = (head.width(), head.panels);
    let (k, v) = (head.of_keys(Part::Key), head.of_keys(Part::Value));
    let chunk =
        head.keys().div_ceil(head.keys().div_ceil(KEYS).max(1)).next_multiple_of(panels.rows);
    let mut weights = scratch(chunk * head.tile());
    let mut out = scratch(head.tile() * width);
    let [mut largest, mut sums, mut factors] = [(); 3].map(|()| scratch(head.tile()));
    for (tile, lse) in head.tiles().zip(lse.chunks_mut(head.tile())) {
        let lanes = tile.lanes;
        let (out, scaled) = (&mut out[..lanes * width], tile.scaled(head));
        let terms = head.layer.places.map(|places| places.terms(&tile.at_places(head), lanes));
        out.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        for first in (0..head.keys()).step_by(chunk.max(1)) {
            let keys = chunk.min(head.keys() - first);
            let height = keys.next_multiple_of(panels.rows);
            let rows = &k[first * width..(first + height) * width];
            let scores = &mut weights[..height * lanes];
            panels.multiply(Left::Rows(rows, width), scaled, (scores, lanes), Then::Set);
            let scores = &mut scores[..keys * lanes];
            if let Some(terms) = &terms {
                terms.add(first, scores);
            }
            head.add_key_bias(first, scores, lanes);
            let state = [&mut largest, &mut sums, &mut factors].map(|state| &mut state[..lanes]);
            match panels.lanes {
                16 => weigh::<16>(scores, state, out),
                _ => weigh::<8>(scores, state, out),
            }
            let rows = &v[first * width..(first + keys) * width];
            panels.multiply(Left::Columns(scores, lanes), rows, (out, width), Then::Add);
        }
        let rows = tile.rows.iter().zip(out.chunks_exact(width));
        for (i, (lse, (&row, out))) in lse.iter_mut().zip(rows).enumerate() {
            *lse = largest[i] + sums[i].ln();
            // Dividing the outputs instead of the weights: D values per query, not N.
            let factor = if head.keys() == 0 { 0.0 } else { 1.0 / sums[i] };
            head.write_row(y, Part::Query, row, out, factor);
        }
    }
}

/// Replaces scores `[keys, lanes]` by exp(score − the largest so far of the lane). The sums of what came before and its outputs
/// `[lanes, width]` shrink by the factor that makes up for a new largest; the sums then grow by the new weights.
fn weigh<const L: usize>(
    scores: &mut [f32],
    [largest, sums, factors]: [&mut [f32]; 3],
    out: &mut [f32],
) {
    let (lanes, width) = (sums.len(), out.len() / sums.len());
    vectorised(
        #[inline(always)]
        || {
            for lane in (0..lanes).step_by(L) {
                let mut top = [f32::NEG_INFINITY; L];
                for row in scores.chunks_exact(lanes) {
                    let row = &row[lane..lane + L];
                    for i in 0..L {
                        top[i] = if row[i] > top[i] { row[i] } else { top[i] };
                    }
                }
                let state = [&mut *largest, sums, factors].map(|state| &mut state[lane..lane + L]);
                let [largest, sums, factors] = state;
                let mut total = [0.0; L];
                for i in 0..L {
                    top[i] = if largest[i] > top[i] { largest[i] } else { top[i] };
                    factors[i] = exp(largest[i] - top[i]);
                    total[i] = sums[i] * factors[i];
                }
                for row in scores.chunks_exact_mut(lanes) {
                    let row = &mut row[lane..lane + L];
                    for i in 0..L {
                        row[i] = exp(row[i] - top[i]);
                        total[i] += row[i];
                    }
                }
                largest.copy_from_slice(&top);
                sums.copy_from_slice(&total);
            }
            for (out, &factor) in out.chunks_exact_mut(width).zip(&*factors) {
                out.iter_mut().for_each(|v| *v *= factor);
            }
        },
    );
}
