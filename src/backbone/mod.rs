//! The vision transformer that every task shares (Dosovitskiy et al., arXiv 2010.11929), with timm's parameter names.

use candle_core::{Result, Tensor, bail};

use crate::config::{DispatchConfig, TuningConfig};
use crate::dispatch::{KeptStats, Site};

mod attention;
mod block;
mod dims;
mod layers;
mod mlp;
mod patch_embed;
mod pos_embed;
pub mod pyramid;
mod roles;
mod segment;
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

impl TokenGrid {
    /// The number of the patch that is `by` frames, rows and columns away from patch `number`, all patches of all images
    /// counted in the order of the batch; `None` outside its clip and the grid.
    #[inline]
    pub(crate) fn moved(self, number: usize, by: [isize; 3]) -> Option<usize> {
        let (rows, columns) = self.grid;
        let sizes = [self.frames, rows, columns];
        let place =
            [number / (rows * columns) % self.frames, number / columns % rows, number % columns];
        let inside = |axis: usize| {
            place[axis].checked_add_signed(by[axis]).is_some_and(|moved| moved < sizes[axis])
        };
        let by_patches = (by[0] * rows as isize + by[1]) * columns as isize + by[2];
        (0..3).all(inside).then(|| number.wrapping_add_signed(by_patches))
    }

    /// How many clips `images` with `patches` each are; refuses others than these places have, in the name of `op`.
    pub(crate) fn clips(self, op: &str, images: usize, patches: usize) -> Result<usize> {
        let (rows, columns) = self.grid;
        if self.frames == 0 || !images.is_multiple_of(self.frames) || patches != rows * columns {
            bail!("{op}: {images} × {patches} tokens do not lie on {self:?}");
        }
        Ok(images / self.frames)
    }
}

/// What a head reads of the backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reads {
    /// The blocks (from 0, repeats allowed) whose patches become [`Features::maps`].
    pub taps: Vec<usize>,
    /// What counts of [`Features::tokens`].
    pub tokens: Tokens,
}

/// Some of an image's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// Every one.
    All,
    /// Those before the patches: class, register and prompt tokens.
    Prefix,
}

impl Reads {
    /// All tokens, and the maps of the blocks `taps`.
    pub fn all(taps: &[usize]) -> Self {
        Self { taps: taps.to_vec(), tokens: Tokens::All }
    }

    /// The class token and its like alone.
    pub fn prefix() -> Self {
        Self { taps: Vec::new(), tokens: Tokens::Prefix }
    }

    /// Whether the patches end before the last block's MLP, because nothing that is read depends on what it makes of them.
    /// Their decisions are taken all the same; experts are chosen by the mean of all tokens, and then none is left out.
    pub fn leave_out_patches(&self, dispatch: &DispatchConfig, tuning: &TuningConfig) -> bool {
        self.tokens == Tokens::Prefix
            && self.taps.is_empty()
            && dispatch.variant.sites().contains(&Site::Mlp)
            && tuning.adapter.is_none_or(|adapter| adapter.experts == 1)
    }
}

/// What the backbone hands to a head.
#[derive(Debug, Clone)]
pub struct Features {
    /// The tapped blocks' patch tokens as maps `[B·T, C, h, w]`; dense: skipped tokens are in their places.
    pub maps: Vec<Tensor>,
    /// The last block's tokens after the final norm, `[B·T, prefix + P, C]`; `[B·T, prefix, C]` where it left out the patches
    /// ([`Reads::leave_out_patches`]).
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
