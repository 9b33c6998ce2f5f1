//! The map operations in their composed and fused forms, at the sizes of a UperNet on a ViT.
//!
//! `cargo bench --bench maps -- conv`; criterion's elements per second are floating-point operations per second for the
//! convolutions and output values per second elsewhere.

use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rescatter::ops::{self, BatchNorm, Conv2d, CrossEntropy, NormMode};
use rescatter::params::ParamStore;
use rescatter::world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn random(shape: &[usize]) -> Result<Tensor> {
    ops::gradcheck::normal(shape, 1)?.to_dtype(DType::F32)
}

type Operation<'a> = Box<dyn Fn(&[Var]) -> Result<Tensor> + 'a>;

/// An operation on tracked inputs, and how much work its forward pass is.
struct Case<'a> {
    inputs: Vec<Var>,
    work: usize,
    run: Operation<'a>,
}

impl<'a> Case<'a> {
    fn new(
        shapes: &[&[usize]],
        work: usize,
        run: impl Fn(&[Var]) -> Result<Tensor> + 'a,
    ) -> Result<Self> {
        let inputs =
            shapes.iter().map(|shape| Var::from_tensor(&random(shape)?)).collect::<Result<_>>()?;
        Ok(Self { inputs, work, run: Box::new(run) })
    }

    /// Times the forward pass, and forward and backward, fused and composed.
    fn bench(&self, group: &mut BenchmarkGroup<WallTime>, name: &str) -> Result<()> {
        let y = (self.run)(&self.inputs)?;
        let upstream = random(y.dims())?;
        let forward = || (self.run)(&self.inputs);
        let both = || (forward()? * &upstream)?.sum_all()?.backward();
        group.throughput(Throughput::Elements(self.work as u64));
        group.bench_function(format!("{name}/forward/fused"), |b| b.iter(forward));
        group.bench_function(format!("{name}/forward/composed"), |b| {
            b.iter(|| ops::composed(forward))
        });
        // The weight and input gradients are as much work as the forward pass each.
        group.throughput(Throughput::Elements(3 * self.work as u64));
        group.bench_function(format!("{name}/both/fused"), |b| b.iter(both));
        group.bench_function(format!("{name}/both/composed"), |b| b.iter(|| ops::composed(both)));
        Ok(())
    }
}

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
        norm.forward_relu(&t[0], NormMode::Batch { update: false, world: World::SINGLE })
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
    let criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    let mut criterion =
        criterion.measurement_time(Duration::from_millis(600)).configure_from_args();
    convolutions(&mut criterion)?;
    maps(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
