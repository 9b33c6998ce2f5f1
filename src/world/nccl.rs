//! Sums over the GPUs of all processes, without a way through the host.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor, bail};

use super::World;
use crate::{Error, Result};

thread_local! {
    // Never closed: the other processes may be gone by then.
    static CONNECTION: Cell<Option<&'static Comm>> = const { Cell::new(None) };
}

/// Replaces f32 values on a GPU by their sums over all processes.
pub(super) fn sum(world: &World, values: &Tensor) -> Result<()> {
    let Device::Cuda(device) = values.device() else {
        return Err(Error::usage("NCCL adds what is on GPUs"));
    };
    let connection = match CONNECTION.get() {
        Some(connection) => connection,
        None => connect(world, device.cuda_stream())?,
    };
    Ok(values.inplace_op1(&AllReduce(connection))?)
}

/// Connects the GPUs of all processes; the first process makes up the name of the connection.
fn connect(world: &World, stream: Arc<CudaStream>) -> Result<&'static Comm> {
    let failed = |error| {
        Error::usage(format!("NCCL does not connect the GPUs: {error:?}"))
            .with_hint("each process needs a GPU of its own (`device: auto`) and libnccl.so.2")
    };
    let name = match world.leads() {
        true => Id::new().map_err(failed)?.internal().to_vec(),
        false => Vec::new(),
    };
    let name: Vec<std::ffi::c_char> = world.gather(name)?.swap_remove(0);
    let Ok(name) = name.try_into() else {
        return Err(Error::usage("the first process gave NCCL's connection no name"));
    };
    let connection =
        Comm::from_rank(stream, world.rank, world.size, Id::uninit(name)).map_err(failed)?;
    let connection = &*Box::leak(Box::new(connection));
    CONNECTION.set(Some(connection));
    Ok(connection)
}

struct AllReduce(&'static Comm);

impl InplaceOp1 for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("all_reduce: NCCL adds what is on GPUs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> candle_core::Result<()> {
        let CudaStorageSlice::F32(values) = &mut storage.slice else {
            bail!("all_reduce: the values are not f32")
        };
        match self.0.all_reduce_in_place(values, &ReduceOp::Sum) {
            Ok(_) => Ok(()),
            Err(error) => bail!("NCCL cannot add what the GPUs have: {error:?}"),
        }
    }
}
