//! The operations on tokens in their composed and fused forms, at the sizes of a ViT-B at 224 pixels, 8 images.
//!
//! `cargo bench --bench tokens -- mlp`; criterion's elements per second are floating-point operations per second for the
//! products and the half block, multiply-adds for the convolution over frames, and output values per second elsewhere.

mod harness;

use candle_core::{DType, Result, Tensor, Var};
use criterion::Criterion;
use harness::{Case, random};
use rescatter::backbone::TokenGrid;
use rescatter::ops::{self, MlpBranch};

const IMAGES: usize = 8;
const TOKENS: usize = 197;
const WIDTH: usize = 768;
const HIDDEN: usize = 4 * WIDTH;

fn products(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("product");
    let work = 2 * IMAGES * TOKENS * WIDTH * HIDDEN;
    let tokens = [IMAGES, TOKENS, WIDTH];
    let linear = |t: &[Var]| ops::linear(&t[0], &t[1], Some(&t[2]));
    Case::new(&[&tokens, &[HIDDEN, WIDTH], &[HIDDEN]], work, linear)?
        .bench(&mut group, "linear")?;
    let frozen = (random(&[HIDDEN, WIDTH])?, random(&[HIDDEN])?);
    let linear = |t: &[Var]| ops::linear(&t[0], &frozen.0, Some(&frozen.1));
    Case::new(&[&tokens], work, linear)?.bench(&mut group, "linear_frozen")?;
    group.finish();
    Ok(())
}

fn half_blocks(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("mlp");
    let pair = |out: usize, input: usize| -> Result<(Tensor, Tensor)> {
        Ok(((random(&[out, input])? * 0.05)?, random(&[out])?))
    };
    let mlp = MlpBranch {
        norm: (random(&[WIDTH])?, random(&[WIDTH])?),
        eps: 1e-6,
        fc1: pair(HIDDEN, WIDTH)?,
        fc2: pair(WIDTH, HIDDEN)?,
        gamma: None,
    };
    let tokens = [IMAGES, TOKENS, WIDTH];
    let work = 4 * IMAGES * TOKENS * WIDTH * HIDDEN;
    Case::new(&[&tokens], work, |t| mlp.sum(&t[0], None, None))?.bench(&mut group, "all")?;
    // In training the branch of every token is wanted for the mask's gradient; backward runs on the active half alone.
    let half = random(&[IMAGES, TOKENS])?.ge(0.0)?.to_dtype(DType::F32)?;
    Case::new(&[&tokens], work, |t| mlp.sum(&t[0], Some(&half), None))?
        .bench(&mut group, "half")?;
    group.finish();
    Ok(())
}

fn rows(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("rows");
    let tokens = [IMAGES, TOKENS, WIDTH];
    let count = IMAGES * TOKENS * WIDTH;
    let norm = |t: &[Var]| ops::layer_norm(&t[0], &t[1], &t[2], 1e-6);
    Case::new(&[&tokens, &[WIDTH], &[WIDTH]], count, norm)?.bench(&mut group, "layer_norm")?;
    Case::new(&[&[IMAGES, TOKENS, HIDDEN]], 4 * count, |t| ops::gelu(&t[0]))?
        .bench(&mut group, "gelu")?;
    Case::new(&[&[12 * IMAGES, TOKENS, TOKENS]], 12 * IMAGES * TOKENS * TOKENS, |t| {
        ops::softmax(&t[0])
    })?
    .bench(&mut group, "softmax")?;
    Case::new(&[&tokens, &tokens], count, |t| ops::add(&t[0], &t[1]))?.bench(&mut group, "add")?;
    group.finish();
    Ok(())
}

fn clips(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("clip");
    let places = TokenGrid { grid: (14, 14), frames: 8 };
    for kernel in [[3, 1, 1], [3, 3, 3]] {
        let [time, height, breadth] = kernel;
        let work = IMAGES * 196 * 96 * time * height * breadth;
        let shapes = [&[IMAGES, 196, 96][..], &[96, 1, time, height, breadth], &[96]];
        Case::new(&shapes, work, |t| ops::clip_conv(&t[0], &t[1], &t[2], places))?
            .bench(&mut group, &format!("conv_{time}x{height}x{breadth}"))?;
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    harness::run(&[products, half_blocks, rows, clips])
}
