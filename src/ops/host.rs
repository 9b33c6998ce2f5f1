//! Access to the values of CPU tensors for kernels.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor on the CPU, held for reading; generic over candle's lock guard.
struct Values<G> {
    storage: G,
    start: usize,
    end: usize,
}

/// Holds the values of `tensor`.
///
/// # Errors
/// If it is not contiguous f32 on the CPU.
pub(crate) fn values(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a kernel needs a contiguous tensor")
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Values { storage, start, end }),
        _ => bail!("a kernel needs f32 on the CPU, got {:?}", tensor.dtype()),
    }
}

impl<G: Deref<Target = Storage>> Deref for Values<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            // `values` lets nothing else through.
            _ => &[],
        }
    }
}

/// The values that a custom operation was called with.
///
/// # Errors
/// If they are not contiguous f32.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("a kernel needs a contiguous tensor"),
        _ => bail!("a kernel needs f32 values"),
    }
}
