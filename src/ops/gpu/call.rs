//! One launch of a kernel.
#![cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))] // There is nothing to launch on.

use candle_core::{Layout, Result, Shape, Storage, Tensor, bail};

use crate::ops::count;
use crate::ops::fresh::Fresh;

/// A kernel and what it is given. Its parameters are pointers to the inputs, pointers to the outputs and the numbers, in the
/// order of these lists.
pub(super) struct Call<'a> {
    /// Its name in the `.cu` file and in [`kernel_calls`](crate::ops::kernel_calls).
    pub(super) kernel: &'static str,
    /// Contiguous, f32, u32 or i64.
    pub(super) inputs: &'a [&'a Tensor],
    /// f32 or words of bits.
    pub(super) outputs: &'a [Output],
    pub(super) numbers: &'a [Number],
    pub(super) grid: Grid,
}

/// How many threads there are.
#[derive(Clone, Copy)]
pub(super) enum Grid {
    /// A block of [`THREADS`] for each row.
    Rows(usize),
    /// A thread for each value, and some in the last block that find nothing to do.
    Values(usize),
}

/// Threads of a block that works on a row, as in `common.cuh`.
pub(super) const THREADS: usize = 128;

impl Grid {
    /// Blocks, and threads of a block.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::Rows(rows) => (rows, THREADS),
            Self::Values(count) => (count.div_ceil(256), 256),
        }
    }
}

/// What an output holds before the kernel runs.
pub(super) enum Output {
    /// Anything: the kernel writes every element.
    Unwritten(Shape),
    /// Zeros, to add to.
    Zeros(Shape),
    /// 64 bits each (i64 to candle), of which the kernel writes every one.
    Words(Shape),
}

/// A number for a kernel.
#[derive(Clone, Copy)]
pub(super) enum Number {
    /// `unsigned`
    U32(u32),
    /// `size_t`
    Size(u64),
    /// `float`
    F32(f32),
}

impl From<usize> for Number {
    /// The size of an axis, below 2³².
    fn from(value: usize) -> Self {
        Self::U32(value as u32)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::F32(value as f32)
    }
}

impl Call<'_> {
    /// The outputs as tensors without gradients.
    pub(super) fn tensors(self) -> Result<Vec<Tensor>> {
        Ok(self.run()?.into_iter().map(Fresh::tensor).collect())
    }

    /// The only output.
    pub(super) fn one(self) -> Result<Fresh> {
        let kernel = self.kernel;
        match self.run()?.pop() {
            Some(output) => Ok(output),
            None => bail!("{kernel}: has no output"),
        }
    }

    pub(super) fn run(self) -> Result<Vec<Fresh>> {
        count(self.kernel);
        let held: Vec<_> = self.inputs.iter().map(|t| t.storage_and_layout()).collect();
        let inputs: Vec<(&Storage, &Layout)> = held.iter().map(|(s, l)| (&**s, *l)).collect();
        let storages = self.on_device(&inputs)?;
        let shapes = self.outputs.iter().map(|output| output.shape().clone());
        Ok(storages
            .into_iter()
            .zip(shapes)
            .map(|(storage, shape)| Fresh { storage, shape })
            .collect())
    }

    fn on_device(&self, inputs: &[(&Storage, &Layout)]) -> Result<Vec<Storage>> {
        match inputs.first() {
            #[cfg(feature = "cuda")]
            Some((Storage::Cuda(storage), _)) => self.launch(&storage.device, inputs),
            #[cfg(test)]
            Some((Storage::Cpu(_), _)) => super::emulator::run(self, inputs),
            _ => bail!("{}: its inputs are not on a GPU", self.kernel),
        }
    }

    /// Where in its storage an input lies.
    pub(super) fn span(&self, layout: &Layout) -> Result<(usize, usize)> {
        match layout.contiguous_offsets() {
            Some(span) => Ok(span),
            None => bail!("{}: an input is not contiguous", self.kernel),
        }
    }
}

impl Output {
    pub(super) fn shape(&self) -> &Shape {
        match self {
            Self::Unwritten(shape) | Self::Zeros(shape) | Self::Words(shape) => shape,
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::cudarc::driver::{CudaView, LaunchConfig, PushKernelArg};
    use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
    use candle_core::{CudaDevice, Layout, Result, Storage, bail};

    use super::{Call, Number, Output};

    /// All kernels of the `.cu` files beside this one, compiled by the build script.
    const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

    enum View<'a> {
        F32(CudaView<'a, f32>),
        U32(CudaView<'a, u32>),
        I64(CudaView<'a, i64>),
    }

    impl Call<'_> {
        #[allow(unsafe_code)]
        pub(super) fn launch(
            &self,
            device: &CudaDevice,
            inputs: &[(&Storage, &Layout)],
        ) -> Result<Vec<Storage>> {
            let mut views = Vec::with_capacity(inputs.len());
            for (storage, layout) in inputs {
                let (from, to) = self.span(layout)?;
                views.push(match storage {
                    Storage::Cuda(CudaStorage { slice: CudaStorageSlice::F32(s), .. }) => {
                        View::F32(s.slice(from..to))
                    }
                    Storage::Cuda(CudaStorage { slice: CudaStorageSlice::U32(s), .. }) => {
                        View::U32(s.slice(from..to))
                    }
                    Storage::Cuda(CudaStorage { slice: CudaStorageSlice::I64(s), .. }) => {
                        View::I64(s.slice(from..to))
                    }
                    _ => bail!("{}: an input is no f32, u32 or i64 on the GPU", self.kernel),
                });
            }
            let outputs = self.outputs.iter().map(|output| {
                let count = output.shape().elem_count();
                Ok(match output {
                    Output::Zeros(_) => CudaStorageSlice::F32(device.alloc_zeros(count)?),
                    // SAFETY: the kernel writes every element before anything reads it.
                    Output::Unwritten(_) => CudaStorageSlice::F32(unsafe { device.alloc(count) }?),
                    // SAFETY: likewise.
                    Output::Words(_) => CudaStorageSlice::I64(unsafe { device.alloc(count) }?),
                })
            });
            let mut outputs = outputs.collect::<Result<Vec<_>>>()?;
            let (blocks, threads) = self.grid.size();
            if blocks > 0 {
                let kernel = device.get_or_load_custom_func(self.kernel, "rescatter", PTX)?;
                let mut launch = kernel.builder();
                for view in &views {
                    match view {
                        View::F32(view) => launch.arg(view),
                        View::U32(view) => launch.arg(view),
                        View::I64(view) => launch.arg(view),
                    };
                }
                for output in &mut outputs {
                    match output {
                        CudaStorageSlice::F32(values) => launch.arg(values),
                        CudaStorageSlice::I64(words) => launch.arg(words),
                        _ => bail!("{}: an output is neither f32 nor i64", self.kernel),
                    };
                }
                for number in self.numbers {
                    match number {
                        Number::U32(value) => launch.arg(value),
                        Number::Size(value) => launch.arg(value),
                        Number::F32(value) => launch.arg(value),
                    };
                }
                let shape = LaunchConfig {
                    grid_dim: (blocks as u32, 1, 1),
                    block_dim: (threads as u32, 1, 1),
                    shared_mem_bytes: 0,
                };
                // SAFETY: the kernel's parameters are what `Call` says, and it stays inside the shapes that its numbers give.
                unsafe { launch.launch(shape) }.map_err(candle_core::Error::wrap)?;
            }
            let storage = |slice| Storage::Cuda(CudaStorage { slice, device: device.clone() });
            Ok(outputs.into_iter().map(storage).collect())
        }
    }
}
