//! The map operations in their composed and fused forms, at the sizes of a UperNet on a ViT.
//!
//! `cargo bench --bench maps -- conv`; criterion's elements per second are floating-point operations per second for the
//! convolutions and output values per second elsewhere.

mod harness;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::Criterion;
use harness::{Case, random};
use rescatter::ops::{self, BatchNorm, Conv2d, CrossEntropy, NormMode};
use rescatter::params::ParamStore;
use rescatter::world::World;

fn convolutions(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("conv");
    // (batch, channels, outputs, side, kernel)
    let sizes =
        [(4, 128, 128, 72, 3), (4, 512, 128, 72, 3), (1, 512, 512, 128, 3), (4, 384, 128, 72, 1)];
    for (batch, channels, outputs, side, kernel) in sizes {
        let work = 2 * batch * channels * outputs * side * side * kernel * kernel;
        let shapes = [&[batch, channels, side, side][..], &[outputs, channels, kernel, kernel]];
        let case =
            Case::new(&shapes, work, |t| ops::conv2d(&t[0], &t[1], None, Conv2d::same(kernel)))?;
        case.bench(
            &mut group,
            &format!("{kernel}x{kernel}/{channels}_{outputs}/{side}/batch_{batch}"),
        )?;
    }
    let shapes = [&[4, 384, 18, 18][..], &[384, 384, 2, 2], &[384]];
    let work = 2 * 4 * 384 * 384 * 4 * 18 * 18;
    let case = Case::new(&shapes, work, |t| ops::conv_transpose2x2(&t[0], &t[1], Some(&t[2])))?;
    case.bench(&mut group, "transposed/384_384/18/batch_4")?;
    // UPerNet's fuse convolution, with two of its four maps.
    let shapes = [&[1, 128, 64, 64][..], &[1, 128, 32, 32], &[128, 256, 3, 3]];
    let case = Case::new(&shapes, 2 * 256 * 128 * 9 * 64 * 64, |t| {
        let parts = [t[0].as_tensor().clone(), t[1].as_tensor().clone()];
        ops::conv3x3_joined(&parts, &t[2], (64, 64))
    })?;
    case.bench(&mut group, "joined/128_128/64/batch_1")?;
    let patches = Conv2d { stride: 16, ..Conv2d::default() };
    let shapes = [&[4, 3, 512, 512][..], &[768, 3, 16, 16], &[768]];
    let case = Case::new(&shapes, 2 * 4 * 768 * 768 * 1024, |t| {
        ops::conv2d(&t[0], &t[1], Some(&t[2]), patches)
    })?;
    case.bench(&mut group, "patches/768/512/batch_4")?;
    group.finish();
    Ok(())
}

fn maps(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("map");
    let x: &[usize] = &[4, 128, 36, 36];
    let up = |t: &[Var]| ops::resize_bilinear(&t[0], (72, 72));
    Case::new(&[x], 4 * 128 * 72 * 72, up)?.bench(&mut group, "bilinear_up")?;
    let pool = |t: &[Var]| ops::adaptive_avg_pool2d(&t[0], (6, 6));
    Case::new(&[x], 4 * 128 * 36, pool)?.bench(&mut group, "adaptive_pool_6")?;
    let max = |t: &[Var]| ops::max_pool2d(&t[0], 2, 2, 0);
    Case::new(&[x], 4 * 128 * 18 * 18, max)?.bench(&mut group, "max_pool_2")?;
    let norm = BatchNorm::new(128, &ParamStore::new(&Device::Cpu, DType::F32, 0).root())?;
    let batch_norm = |t: &[Var]| {
        norm.relu(NormMode::Batch { update: false, world: World::SINGLE }).forward(&t[0])
    };
    let large: &[usize] = &[4, 128, 72, 72];
    Case::new(&[large], 4 * 128 * 72 * 72, batch_norm)?.bench(&mut group, "batch_norm_relu")?;
    let labels = random(&[2, 256, 256])?.flatten_all()?.to_vec1::<f32>()?;
    let labels: Vec<u32> = labels.iter().map(|v| (v.abs() * 1e3) as u32 % 150).collect();
    let labels = Tensor::from_vec(labels, (2, 256, 256), &Device::Cpu)?;
    let entropy =
        |t: &[Var]| Ok(ops::cross_entropy_resized(&t[0], &labels, &CrossEntropy::default())?.0);
    Case::new(&[&[2, 150, 64, 64]], 2 * 150 * 256 * 256, entropy)?
        .bench(&mut group, "cross_entropy_resized")?;
    let full: &[usize] = &[2, 150, 256, 256];
    let entropy = |t: &[Var]| Ok(ops::cross_entropy(&t[0], &labels, &CrossEntropy::default())?.0);
    Case::new(&[full], 2 * 150 * 256 * 256, entropy)?.bench(&mut group, "cross_entropy")?;
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    harness::run(&[convolutions, maps])
}
