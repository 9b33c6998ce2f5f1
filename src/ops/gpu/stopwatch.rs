//! Time on a device.

#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "cuda")]
use candle_core::Error;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, sys::CUevent_flags};
use candle_core::{Device, Result};

/// Times the work of a device: by the events of its stream on a GPU, by the host's clock elsewhere.
#[derive(Debug)]
pub struct Stopwatch {
    start: Start,
}

#[derive(Debug)]
enum Start {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Gpu(Arc<CudaStream>, CudaEvent),
}

impl Stopwatch {
    /// Starts behind the work that the device has been given so far.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start(device: &Device) -> Result<Self> {
        let start = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let stream = device.cuda_stream();
                let event = record(&stream)?;
                Start::Gpu(stream, event)
            }
            _ => Start::Host(Instant::now()),
        };
        Ok(Self { start })
    }

    /// Seconds from the start until the work that the device has been given so far is done; waits for it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn seconds(&self) -> Result<f64> {
        match &self.start {
            Start::Host(start) => Ok(start.elapsed().as_secs_f64()),
            #[cfg(feature = "cuda")]
            Start::Gpu(stream, start) => {
                let end = record(stream)?;
                Ok(f64::from(start.elapsed_ms(&end).map_err(Error::wrap)?) / 1e3)
            }
        }
    }
}

/// An event that knows its time.
#[cfg(feature = "cuda")]
fn record(stream: &CudaStream) -> Result<CudaEvent> {
    stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gpu::emulator;
    use crate::ops::twin::random;

    #[test]
    fn work_takes_time() -> Result<()> {
        let x = random(&[500, 500], 1)?.to_device(&emulator::device()?)?;
        let watch = Stopwatch::start(x.device())?;
        x.matmul(&x)?;
        let one = watch.seconds()?;
        x.matmul(&x)?;
        assert!(0.0 < one && one < watch.seconds()?);
        Ok(())
    }
}
