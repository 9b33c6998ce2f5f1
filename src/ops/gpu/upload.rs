//! The way of batches from the host to a GPU.

#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::PinnedHostSlice;
use candle_core::{Device, Result, Tensor};

/// Copies tensors to a device; to a GPU through page-locked memory, which is kept for the next one, and while other threads'
/// work runs there.
pub(crate) struct Upload {
    device: Device,
    #[cfg(feature = "cuda")]
    locked: Option<PinnedHostSlice<f32>>,
}

impl Upload {
    pub(crate) fn to(device: &Device) -> Self {
        Self {
            device: device.clone(),
            #[cfg(feature = "cuda")]
            locked: None,
        }
    }

    /// The tensor on the device, with all its values there: other threads' work is not ordered behind this thread's.
    pub(crate) fn send(&mut self, tensor: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Device::Cuda(device), Device::Cpu, candle_core::DType::F32) =
            (&self.device, tensor.device(), tensor.dtype())
        {
            return cuda::send(device, tensor, &mut self.locked);
        }
        let there = tensor.to_device(&self.device)?;
        self.device.synchronize()?;
        Ok(there)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::cudarc::driver::PinnedHostSlice;
    use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
    use candle_core::{CudaDevice, Error, Result, Storage, Tensor};

    use crate::ops::fresh::Fresh;
    use crate::ops::host;

    /// Candle's stream is another one in each thread, so the copy waits for no work but this thread's.
    #[allow(unsafe_code)]
    pub(super) fn send(
        device: &CudaDevice,
        tensor: &Tensor,
        locked: &mut Option<PinnedHostSlice<f32>>,
    ) -> Result<Tensor> {
        let tensor = tensor.contiguous()?;
        let values = host::values(&tensor)?;
        let stream = device.cuda_stream();
        let buffer = match locked.take().filter(|buffer| buffer.len() >= values.len()) {
            Some(buffer) => buffer,
            // SAFETY: only what was written there is read.
            None => unsafe { stream.context().alloc_pinned(values.len()) }.map_err(Error::wrap)?,
        };
        let buffer = locked.insert(buffer);
        let staged = &mut buffer.as_mut_slice().map_err(Error::wrap)?[..values.len()];
        staged.copy_from_slice(&values);
        // SAFETY: the copy writes every element.
        let mut slice = unsafe { device.alloc::<f32>(values.len()) }?;
        stream.memcpy_htod(staged, &mut slice).map_err(Error::wrap)?;
        // The buffer is written again, and whoever takes the tensor waits for nothing.
        stream.synchronize().map_err(Error::wrap)?;
        let storage = CudaStorage { slice: CudaStorageSlice::F32(slice), device: device.clone() };
        Ok(Fresh { storage: Storage::Cuda(storage), shape: tensor.shape().clone() }.tensor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gpu::emulator;
    use crate::ops::twin::random;

    /// By one thread and looked at by another; sizes that fit what is locked already, and sizes that do not.
    #[test]
    fn what_is_sent_arrives() -> Result<()> {
        let device = emulator::device()?;
        let sent = [4, 3, 3, 9, 1].map(|rows| random(&[rows, 70], rows as u64));
        let sent = sent.into_iter().collect::<Result<Vec<_>>>()?;
        let send = || {
            let mut upload = Upload::to(&device);
            sent.iter().map(|tensor| upload.send(tensor)).collect::<Result<Vec<_>>>()
        };
        let arrived = std::thread::scope(|scope| scope.spawn(send).join());
        for (sent, arrived) in sent.iter().zip(arrived.unwrap()?) {
            assert!(arrived.device().same_device(&device));
            assert_eq!(arrived.to_vec2::<f32>()?, sent.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
