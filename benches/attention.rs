//! The attention half block of a ViT-S at 1024 pixels and patch 16: the whole image and windows, with and without relative
//! positions, fused and composed.
//!
//! `cargo bench --workspace --bench attention -- window_16`; criterion's elements per second are multiply-adds per second of
//! the projections, scores, mixing and table products that the fused kernel executes.

mod harness;

use candle_core::{Result, Tensor, Var};
use criterion::{Criterion, Throughput};
use rescatter::ops::{self, AttentionBranch, RelativePosition};

const GRID: (usize, usize) = (64, 64);
const CHANNELS: usize = 384;
const HEADS: usize = 6;

fn random(shape: &[usize], scale: f64) -> Result<Tensor> {
    harness::random(shape)? * scale
}

fn branch(window: Option<usize>, places: Option<(usize, usize)>) -> Result<AttentionBranch> {
    let vector = |n: usize| random(&[n], 0.1);
    let table = |side: usize| random(&[2 * side - 1, CHANNELS / HEADS], 0.1);
    let rel_pos = match places {
        Some((rows, columns)) => {
            Some(RelativePosition { height: table(rows)?, width: table(columns)? })
        }
        None => None,
    };
    Ok(AttentionBranch {
        norm: (vector(CHANNELS)?, vector(CHANNELS)?),
        eps: 1e-6,
        qkv: (random(&[3 * CHANNELS, CHANNELS], 0.05)?, vector(3 * CHANNELS)?),
        proj: (random(&[CHANNELS, CHANNELS], 0.05)?, vector(CHANNELS)?),
        gamma: None,
        heads: HEADS,
        window,
        rel_pos,
    })
}

fn bench(c: &mut Criterion, name: &str, window: Option<usize>) -> Result<()> {
    let mut group = c.benchmark_group(name);
    let tokens = GRID.0 * GRID.1;
    let x = random(&[1, tokens, CHANNELS], 1.0)?;
    let tracked = Var::from_tensor(&x)?;
    let places = window.map_or(GRID, |size| (size, size));
    for (kind, positions) in [("plain", None), ("rel_pos", Some(places))] {
        let branch = branch(window, positions)?;
        let table = positions.map_or(0, |(rows, columns)| 2 * (rows + columns) - 2);
        let work = tokens * CHANNELS * (4 * CHANNELS + 2 * places.0 * places.1 + table);
        group.throughput(Throughput::Elements(work as u64));
        let forward = || branch.forward(&x, GRID, None);
        group.bench_function(format!("{kind}/forward/fused"), |b| b.iter(forward));
        group.bench_function(format!("{kind}/forward/composed"), |b| {
            b.iter(|| ops::composed(forward))
        });
        let both = || (branch.forward(&tracked, GRID, None)? * &x)?.sum_all()?.backward();
        group.bench_function(format!("{kind}/both/fused"), |b| b.iter(both));
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    harness::run(&[
        |c| bench(c, "global", None),
        |c| bench(c, "window_14", Some(14)),
        |c| bench(c, "window_16", Some(16)),
    ])
}
