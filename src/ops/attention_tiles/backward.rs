//! The gradients of queries, keys and values, from weights that are computed again.

use rayon::prelude::*;

use super::{Columns, Head, Layer, Part};
use crate::ops::gemm::{Left, Panels, Then};
use crate::ops::rows::scratch;
use crate::ops::vector::{exp, vectorised};

/// Keys whose weights for a tile of queries, and themselves, stay in the first-level cache.
const KEYS: usize = 64;

/// Writes the gradient of `layer.qkv` (to `dqkv`, which must hold zeros where a token is no key) for the gradient `grad`
/// `[tokens, C]` of the output; `lse` is what [`super::forward`] returned. The gradient of padding is dropped. Returns that of the
/// places' table where `wanted` asks for it.
pub(crate) fn backward(
    layer: Layer,
    lse: &[f32],
    grad: &[f32],
    dqkv: &mut [f32],
    wanted: TableGradient,
) -> Option<Vec<f32>> {
    backward_by(Panels::best(), layer, (lse, grad), dqkv, wanted)
}

pub(super) fn backward_by(
    panels: &'static Panels,
    layer: Layer,
    (lse, grad): (&[f32], &[f32]),
    dqkv: &mut [f32],
    wanted: TableGradient,
) -> Option<Vec<f32>> {
    let dqkv = Columns::new(dqkv, 3 * layer.heads.channels());
    let mut rest = lse;
    let mut tasks = Vec::new();
    for head in layer.each_head(panels) {
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
    if head.keys() == 0 {
        return; // zeros, whatever the queries are
    }
    let Head { panels, layer, .. } = *head;
    let (width, height) = (head.width(), head.height());
    let (k, v) = (head.of_keys(Part::Key), head.of_keys(Part::Value));
    let [mut dk, mut dv] = [(); 2].map(|()| scratch(height * width));
    dk.fill(0.0);
    dv.fill(0.0);
    let [mut weights, mut dweights] = [(); 2].map(|()| scratch(height * head.tile()));
    let [mut columns, mut dq] = [(); 2].map(|()| scratch(head.tile() * width));
    for (tile, lse) in head.tiles().zip(lse.chunks(head.tile())) {
        let lanes = tile.lanes;
        let channels = layer.heads.channels();
        let row = |&row: &usize| &grad[row * channels + head.column..][..layer.heads.width];
        let g = head.gathered(tile.rows.iter().map(row), lanes);
        let columns = &mut columns[..lanes * width];
        panels.transpose(&g, width, 1.0, columns);
        let columns = &columns[..layer.heads.width * lanes];
        let [weights, dweights] =
            [&mut weights, &mut dweights].map(|weights| &mut weights[..height * lanes]);
        panels.multiply(Left::Rows(&k, width), tile.scaled(head), (weights, lanes), Then::Set);
        panels.multiply(Left::Rows(&v, width), columns, (dweights, lanes), Then::Set);
        let keys = ..head.keys() * lanes;
        if let Some(places) = layer.places {
            places.terms(&tile.at_places(head), lanes).add(0, &mut weights[keys]);
        }
        head.add_key_bias(0, &mut weights[keys], lanes);
        match panels.lanes {
            16 => score_gradient::<16>(&mut weights[keys], &mut dweights[keys], lanes, lse),
            _ => score_gradient::<8>(&mut weights[keys], &mut dweights[keys], lanes, lse),
        }
        panels.multiply(Left::Rows(weights, lanes), &g, (&mut dv, width), Then::Add);
        panels.multiply(Left::Rows(dweights, lanes), &tile.queries, (&mut dk, width), Then::Add);
        let dq = &mut dq[..lanes * width];
        let parts = dweights[keys].chunks(KEYS * lanes).zip(k.chunks(KEYS * width));
        for (i, (dscores, k)) in parts.enumerate() {
            let k = &k[..dscores.len() / lanes * width];
            let then = if i == 0 { Then::Set } else { Then::Add };
            panels.multiply(Left::Columns(dscores, lanes), k, (dq, width), then);
        }
        dq.iter_mut().for_each(|v| *v *= head.scale());
        if let Some(places) = layer.places {
            places.add_gradient(&tile.at_places(head), &dweights[keys], dq, dtable.as_deref_mut());
        }
        for (&row, dq) in tile.rows.iter().zip(dq.chunks_exact(width)) {
            head.write_row(dqkv, Part::Query, row, dq, 1.0);
        }
    }
    let keys = head.sequence.keys.iter();
    for ((key, dk), dv) in keys.zip(dk.chunks_exact(width)).zip(dv.chunks_exact(width)) {
        if let &Some(key) = key {
            head.write_row(dqkv, Part::Key, key, dk, head.scale());
            head.write_row(dqkv, Part::Value, key, dv, 1.0);
        }
    }
}

/// Turns scores `[keys, lanes]` into weights p and their gradient dp into that of the scores, p (dp − Σ p dp); lanes without a query
/// have neither.
fn score_gradient<const L: usize>(
    weights: &mut [f32],
    dweights: &mut [f32],
    lanes: usize,
    lse: &[f32],
) {
    vectorised(
        #[inline(always)]
        || {
            for lane in (0..lanes).step_by(L) {
                let (mut of_lane, mut mean) = ([0.0; L], [0.0; L]);
                of_lane.iter_mut().zip(&lse[lane..]).for_each(|(to, lse)| *to = *lse);
                let rows = weights.chunks_exact_mut(lanes).zip(dweights.chunks_exact(lanes));
                for (p, dp) in rows {
                    let (p, dp) = (&mut p[lane..lane + L], &dp[lane..lane + L]);
                    for i in 0..L {
                        p[i] = exp(p[i] - of_lane[i]);
                        mean[i] += p[i] * dp[i];
                    }
                }
                let rows = weights.chunks_exact(lanes).zip(dweights.chunks_exact_mut(lanes));
                for (p, dp) in rows {
                    let (p, dp) = (&p[lane..lane + L], &mut dp[lane..lane + L]);
                    for i in 0..L {
                        dp[i] = p[i] * (dp[i] - mean[i]);
                    }
                }
            }
        },
    );
}
