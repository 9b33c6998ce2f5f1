//! What the benches of operations share: an operation on tracked inputs, timed fused and composed.

// Every bench compiles this module and uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

use candle_core::{DType, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rescatter::ops;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Standard normal values.
pub(crate) fn random(shape: &[usize]) -> Result<Tensor> {
    ops::gradcheck::normal(shape, 1)?.to_dtype(DType::F32)
}

type Operation<'a> = Box<dyn Fn(&[Var]) -> Result<Tensor> + 'a>;

/// An operation on tracked inputs, and how much work its forward pass is.
pub(crate) struct Case<'a> {
    inputs: Vec<Var>,
    work: usize,
    run: Operation<'a>,
}

impl<'a> Case<'a> {
    /// `work`: what the forward pass is measured in, e.g. its floating-point operations.
    pub(crate) fn new(
        shapes: &[&[usize]],
        work: usize,
        run: impl Fn(&[Var]) -> Result<Tensor> + 'a,
    ) -> Result<Self> {
        let inputs =
            shapes.iter().map(|shape| Var::from_tensor(&random(shape)?)).collect::<Result<_>>()?;
        Ok(Self { inputs, work, run: Box::new(run) })
    }

    /// Times the forward pass, and forward and backward, fused and composed.
    pub(crate) fn bench(&self, group: &mut BenchmarkGroup<WallTime>, name: &str) -> Result<()> {
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

/// Runs the groups with short measurements: kernels of milliseconds on a machine that others use.
pub(crate) fn run(groups: &[fn(&mut Criterion) -> Result<()>]) -> Result<()> {
    let criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    let mut criterion =
        criterion.measurement_time(Duration::from_millis(600)).configure_from_args();
    groups.iter().try_for_each(|group| group(&mut criterion))?;
    criterion.final_summary();
    Ok(())
}
