//! CUDA kernels for what candle lacks or does slowly on a GPU: a `.cu` file per operation with the Rust file that calls it.
//!
//! Every kernel is held equal to the composed definition of its operation, value and gradient. Without a GPU the same calls run
//! in an emulator in the tests: `emulate.h` makes C++ of the same sources.
//!
//! Beside them what else is different on a GPU: the way of batches to it (`Upload`) and how its work is timed ([`Stopwatch`]).

mod adamw;
mod address;
mod attention;
mod batch_norm;
mod call;
#[cfg(test)]
pub(super) mod emulator;
mod gelu;
mod layer_norm;
mod max_pool2d;
mod nms;
mod roi_align;
mod separable;
mod softmax;
mod stopwatch;
mod upload;

use candle_core::{DType, Device, Tensor};

pub(super) use self::adamw::{Update, adamw};
pub(super) use self::attention::{attends, self_attention};
pub(super) use self::batch_norm::{Norm, Statistics, batch_norm, channel_statistics};
pub(super) use self::gelu::gelu;
pub(super) use self::layer_norm::layer_norm;
pub(super) use self::max_pool2d::max_pool2d;
pub(super) use self::nms::nms;
pub(super) use self::roi_align::roi_align;
pub(super) use self::separable::separable;
pub(super) use self::softmax::softmax;
pub use self::stopwatch::Stopwatch;
pub(crate) use self::upload::Upload;
use super::are_composed;

/// Whether the kernels may run on these tensors: all f32 on one GPU, not inside [`composed`](super::composed).
pub(super) fn runs(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| runs_on(t.device()) && t.dtype() == DType::F32)
}

/// Whether the kernels may run on this device.
pub(super) fn runs_on(device: &Device) -> bool {
    !are_composed() && (device.is_cuda() || emulated())
}

#[cfg(test)]
pub(super) fn emulated() -> bool {
    emulator::is_on()
}

#[cfg(not(test))]
pub(super) fn emulated() -> bool {
    false
}
