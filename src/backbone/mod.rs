//! The vision transformer that every task shares (Dosovitskiy et al., arXiv 2010.11929), with timm's parameter names.

use candle_core::Tensor;

use crate::dispatch::KeptStats;

mod attention;
mod block;
mod dims;
mod layers;
mod mlp;
mod patch_embed;
mod pos_embed;
pub mod pyramid;
mod roles;
mod trunk;
mod vit;

pub use crate::dispatch::Pass;
pub use dims::Dims;
pub(crate) use layers::detached;
pub use pos_embed::resize_pos_embed;
pub use vit::Vit;

/// Where the tokens of a batch lie: patches on a grid, and images in clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Frames per clip, adjacent in the batch; 1 for images.
    pub frames: usize,
}

/// What the backbone hands to a head.
#[derive(Debug, Clone)]
pub struct Features {
    /// The tapped blocks' patch tokens as maps `[B·T, C, h, w]`; dense: skipped tokens are in their places.
    pub maps: Vec<Tensor>,
    /// The last block's tokens after the final norm, `[B·T, prefix + P, C]`.
    pub tokens: Tensor,
    /// The class tokens of added tasks after the final norm, each `[B·T, C]`.
    pub added: Vec<Tensor>,
    /// Rows and columns of patches.
    pub grid: (usize, usize),
    /// Class, register and prompt tokens before the patches.
    pub prefix: usize,
    /// Frames per clip (1 for images).
    pub frames: usize,
    /// Pixels between neighbouring patches.
    pub stride_px: f32,
    /// Who worked where.
    pub kept: KeptStats,
}

impl Features {
    /// Of `[B, 1, C]`: one token per image that stands for all of it, pooled from a pass before. There are no patches.
    pub fn of_pooled(tokens: Tensor) -> Self {
        Self {
            maps: Vec::new(),
            tokens,
            added: Vec::new(),
            grid: (0, 0),
            prefix: 1,
            frames: 1,
            stride_px: 0.0,
            kept: KeptStats::default(),
        }
    }
}
