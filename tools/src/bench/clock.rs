//! What a pass takes, and what the machine could do in that time.

use anyhow::Result;
use candle_core::{Device, Tensor};
use rescatter::ops::{self, Stopwatch};

use super::report::Times;
use crate::process::processor_seconds;

/// Seconds by the clock, and of all threads together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) processor: Option<f64>,
}

/// A running clock.
pub(crate) struct Clock {
    watch: Stopwatch,
    processor: Option<f64>,
}

impl Clock {
    /// Behind what `device` has been given so far.
    pub(crate) fn start(device: &Device) -> Result<Self> {
        Ok(Self { watch: Stopwatch::start(device)?, processor: processor_seconds() })
    }

    /// What has passed since the start, once the device has done what it was given.
    pub(crate) fn stop(&self) -> Result<Spent> {
        let seconds = self.watch.seconds()?;
        let processor = processor_seconds().zip(self.processor).map(|(now, then)| now - then);
        Ok(Spent { seconds, processor })
    }
}

/// 10⁹ floating-point operations a second of a large product, the median of nine: what no model can exceed.
pub(super) fn product_gflops(device: &Device) -> Result<f64> {
    let (rows, width, out) = match device {
        Device::Cpu => (1024, 768, 3072),
        _ => (8192, 8192, 8192),
    };
    let x = Tensor::ones((rows, width), candle_core::DType::F32, device)?;
    let weight = Tensor::ones((out, width), candle_core::DType::F32, device)?;
    let mut seconds = Vec::new();
    for round in 0..10 {
        let clock = Clock::start(device)?;
        ops::linear(&x, &weight, None)?;
        let spent = clock.stop()?;
        if round > 0 {
            seconds.push(spent.seconds);
        }
    }
    Ok(2e-6 * (rows * width * out) as f64 / Times::new(&seconds).median_ms)
}
