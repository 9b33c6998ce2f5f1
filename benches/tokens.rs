//! The token operations, fused beside composed: forward alone and forward with backward, at ViT-B's widths.
//!
//! `cargo bench -p rescatter-tools --bench tokens -- mlp` runs those whose name holds `mlp`; `RAYON_NUM_THREADS`
//! sets the threads. The share of active rows is in the name where rows are skipped.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Result, Tensor, Var};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use rescatter::ops::gradcheck::normal;
use rescatter::ops::{self, AttentionBranch, MlpBranch};

// As in the binary: the default allocator gives large buffers back and takes a page fault for each page afterwards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHANNELS: usize = 768;
const HEADS: usize = 12;
/// Images and tokens per image: one at 224², four of them, one at 512² (patch 16).
const SIZES: [(usize, usize); 3] = [(1, 197), (4, 197), (1, 1025)];

fn random(shape: &[usize], scale: f64) -> Result<Tensor> {
    (normal(shape, shape.iter().sum::<usize>() as u64)? * scale)?.to_dtype(candle_core::DType::F32)
}

fn mlp() -> Result<MlpBranch> {
    let c = CHANNELS;
    Ok(MlpBranch {
        norm: (random(&[c], 1.0)?, random(&[c], 1.0)?),
        eps: 1e-6,
        fc1: (random(&[4 * c, c], 0.03)?, random(&[4 * c], 1.0)?),
        fc2: (random(&[c, 4 * c], 0.02)?, random(&[c], 1.0)?),
        gamma: None,
    })
}

fn attention() -> Result<AttentionBranch> {
    let c = CHANNELS;
    Ok(AttentionBranch {
        norm: (random(&[c], 1.0)?, random(&[c], 1.0)?),
        eps: 1e-6,
        qkv: (random(&[3 * c, c], 0.03)?, random(&[3 * c], 1.0)?),
        proj: (random(&[c, c], 0.03)?, random(&[c], 1.0)?),
        gamma: None,
        heads: HEADS,
    })
}

/// The work of `f` in both forms. Its multiply-adds are the throughput: 1 Gelem/s reads 2 GFLOP/s.
fn both(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    macs: usize,
    f: impl Fn() -> Result<Tensor>,
) {
    group.throughput(Throughput::Elements(macs as u64));
    group.bench_function(format!("{name}/fused"), |b| {
        b.iter(|| black_box(f().expect("the bench's shapes fit")))
    });
    group.bench_function(format!("{name}/composed"), |b| {
        b.iter(|| black_box(ops::composed(&f).expect("the bench's shapes fit")));
    });
}

/// `f` forward and backward for the gradient `grad` of its output.
fn step(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let loss = (y * grad)?.sum_all()?;
    loss.backward()?;
    Ok(loss)
}

fn bench_size(c: &mut Criterion, batch: usize, tokens: usize) -> Result<()> {
    let mut group = c.benchmark_group(format!("{batch}x{tokens}x{CHANNELS}"));
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(10);
    let rows = batch * tokens;
    let product = rows * CHANNELS * CHANNELS;
    let scores = rows * tokens * CHANNELS;
    let x = random(&[batch, tokens, CHANNELS], 1.0)?;
    let (var, grad) = (Var::from_tensor(&x)?, random(&[batch, tokens, CHANNELS], 0.1)?);
    let half: Vec<f32> = (0..rows).map(|row| (row % 2) as f32).collect();
    let mask = Var::from_tensor(&Tensor::from_vec(half, (batch, tokens), &Device::Cpu)?)?;
    let active: Vec<u32> = (0..rows as u32).filter(|row| row % 2 == 1).collect();

    let (mlp, attention) = (mlp()?, attention()?);
    both(&mut group, "mlp/forward", 8 * product, || mlp.forward(&x, None));
    both(&mut group, "mlp/gathered_0.5", 4 * product, || mlp.gathered(&x, &active));
    both(&mut group, "mlp/step", 16 * product, || step(&mlp.forward(&var, None)?, &grad));
    both(&mut group, "mlp/step_0.5", 12 * product, || {
        step(&mlp.forward(&var, Some(&mask))?, &grad)
    });
    both(&mut group, "attention/forward", 4 * product + 2 * scores, || attention.forward(&x, None));
    both(&mut group, "attention/step", 8 * product + 7 * scores, || {
        step(&attention.forward(&var, None)?, &grad)
    });

    let qkv = random(&[batch, tokens, 3 * CHANNELS], 1.0)?;
    both(&mut group, "self_attention/forward", 2 * scores, || {
        ops::self_attention(&qkv, HEADS, None)
    });
    let (weight, bias) = &mlp.fc1;
    both(&mut group, "linear/forward", 4 * product, || ops::linear(&x, weight, Some(bias)));
    let hidden = random(&[batch, tokens, 4 * CHANNELS], 1.0)?;
    both(&mut group, "linear/step", 8 * product, || {
        step(&ops::linear(&var, weight, Some(bias))?, &hidden)
    });
    let values = rows * CHANNELS;
    let (weight, bias) = &mlp.norm;
    both(&mut group, "layer_norm/forward", values, || ops::layer_norm(&x, weight, bias, 1e-6));
    both(&mut group, "layer_norm/step", values, || {
        step(&ops::layer_norm(&var, weight, bias, 1e-6)?, &grad)
    });
    both(&mut group, "gelu/forward", 4 * values, || ops::gelu(&hidden));
    both(&mut group, "softmax/forward", 4 * values, || ops::softmax(&hidden));
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    for (batch, tokens) in SIZES {
        bench_size(&mut criterion, batch, tokens)?;
    }
    criterion.final_summary();
    Ok(())
}
