//! Differentiable tensor operations, one file per operation: a *composed* definition from candle's primitives (right on
//! every device and in f64) and, where it pays, a *fused* kernel for f32 on the CPU with its own backward pass.
//!
//! The fused form runs when every tensor is f32 on the CPU, a CUDA kernel (`gpu`) where there is one and every tensor is f32 on
//! a GPU; [`composed`] switches both off for a comparison, and [`kernel_calls`] tells whether they ran.

mod activation;
mod add;
mod attention;
mod attention_branch;
mod attention_reading;
mod attention_rows;
mod attention_tiles;
mod batch_norm;
mod bottleneck;
mod box_decode;
mod branch;
mod clip_conv;
mod clip_correlation;
mod conv2d;
mod conv_of_resized;
mod conv_transpose;
mod dropout;
mod epilogue;
pub(crate) mod flat;
mod fresh;
mod gelu;
pub mod gemm;
mod gpu;
pub mod gradcheck;
pub(crate) mod host;
mod layer_norm;
mod layer_norm2d;
mod linear;
mod losses;
#[cfg(test)]
mod map_tests;
mod mlp_branch;
mod mlp_rows;
mod nms;
pub mod optimizer;
mod pool;
mod product;
mod recompute;
mod relative_position;
mod rescale;
mod resize;
mod roi_align;
pub(crate) mod rows;
mod separable;
mod sequences;
mod softmax;
mod spent;
#[cfg(test)]
mod twin;
pub(crate) mod vector;
mod windows;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread::LocalKey;

use candle_core::{DType, Tensor};

pub use activation::Activation;
pub use add::add;
pub use attention::{attention, relative_self_attention, self_attention};
pub use attention_branch::AttentionBranch;
pub use batch_norm::{BatchNorm, NormMode, NormRelu};
pub use bottleneck::Bottleneck;
pub use box_decode::decode_boxes;
pub use clip_conv::clip_conv;
pub use clip_correlation::clip_correlation;
pub use conv_of_resized::{conv3x3_joined, conv3x3_joined_norm_relu, mixes_before_resizing};
pub use conv_transpose::{
    conv_transpose2x2, conv_transpose2x2_norm_relu, mix_deconvolution, mixing_first_pays,
};
pub use conv2d::{Conv2d, conv2d, conv2d_norm_relu};
pub use dropout::{drop_path, dropout};
pub use gelu::gelu;
pub use gpu::Stopwatch;
pub(crate) use gpu::Upload;
pub use layer_norm::layer_norm;
pub use layer_norm2d::layer_norm2d;
pub use linear::linear;
pub use losses::{
    CrossEntropy, Dice, Ohem, bce_with_logits, cross_entropy, cross_entropy_per_pixel,
    cross_entropy_resized, dice, kl_div, ohem_cross_entropy, smooth_l1, soft_cross_entropy,
};
pub use mlp_branch::MlpBranch;
pub use nms::nms;
pub use pool::{adaptive_avg_pool2d, avg_pool2d, max_pool2d};
pub use product::in_precision;
pub(crate) use recompute::recomputed;
pub use relative_position::{RelativePosition, resize_relative_position};
pub use rescale::rescale;
pub use resize::{Interpolation, resize, resize_bilinear};
pub use roi_align::{Roi, RoiAlign, pyramid_level, roi_align, roi_align_bitmap};
pub use softmax::{log_softmax, softmax};
pub(crate) use spent::spending;
pub use windows::{window_partition, window_unpartition};

static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// How often the fused kernel `name` has run in this process (`layer_norm`, `layer_norm.backward` …).
pub fn kernel_calls(name: &str) -> u64 {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0)
}

/// Called by a fused kernel each time that it runs.
pub(crate) fn count(name: &'static str) {
    *CALLS.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert(0) += 1;
}

/// Runs `f` with every fused kernel switched off on this thread. The choice is made in the forward pass; the backward
/// pass of an operation follows it wherever it runs.
pub fn composed<T>(f: impl FnOnce() -> T) -> T {
    with(&COMPOSED, true, f)
}

/// Runs `f` with another value in the `cell` of this thread.
fn with<V: Copy + 'static, T>(
    cell: &'static LocalKey<Cell<V>>,
    value: V,
    f: impl FnOnce() -> T,
) -> T {
    struct Restore<V: Copy + 'static>(&'static LocalKey<Cell<V>>, V);
    impl<V: Copy + 'static> Drop for Restore<V> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(value));
    f()
}

/// Whether this runs inside [`composed`].
fn are_composed() -> bool {
    COMPOSED.get()
}

/// Whether a fused kernel may run on these tensors: all f32 on the CPU, and not inside [`composed`].
pub(crate) fn fusible(tensors: &[&Tensor]) -> bool {
    let at_home = |t: &&Tensor| t.device().is_cpu() && t.dtype() == DType::F32;
    !are_composed() && !gpu::emulated() && tensors.iter().all(at_home)
}
