//! Where values lie, for kernels that get the addresses of many tensors in a table.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};

/// The address of the first value of a contiguous f32 tensor, for a kernel that reads or writes there; it stays while the tensor
/// lives. Candle lends the values for writing while the address is taken and not until the kernel has run: on a GPU that is no
/// less than what candle's own launches have, since whoever reads them next queues up behind the kernel.
pub(super) fn address(tensor: &Tensor) -> Result<i64> {
    let op = Address(Cell::new(None));
    tensor.inplace_op1(&op)?;
    match op.0.take() {
        Some(address) => Ok(address as i64),
        None => bail!("a tensor has no address"),
    }
}

/// Candle lends a tensor's values for writing to an `InplaceOp1` alone.
struct Address(Cell<Option<u64>>);

impl InplaceOp1 for Address {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("a kernel needs f32 values") };
        self.0.set(Some(values[start(layout)?..].as_mut_ptr() as u64));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        use candle_core::cuda_backend::cudarc::driver::DevicePtrMut;

        let stream = storage.device.cuda_stream();
        let (address, _) = storage.as_cuda_slice_mut::<f32>()?.device_ptr_mut(&stream);
        self.0.set(Some(address + (start(layout)? * size_of::<f32>()) as u64));
        Ok(())
    }
}

fn start(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("a kernel needs a contiguous tensor"),
    }
}
