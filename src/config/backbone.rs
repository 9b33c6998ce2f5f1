//! The vision transformer: sizes, windows, relative positions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A timm-style vision transformer; explicit sizes override those of `arch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// A named size.
    pub arch: Option<Arch>,
    /// Width of a token.
    pub embed_dim: Option<usize>,
    /// Number of blocks.
    pub depth: Option<usize>,
    /// Attention heads.
    pub num_heads: Option<usize>,
    /// Hidden width of the MLP over `embed_dim`.
    pub mlp_ratio: Option<f64>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether blocks scale their branches (DINOv2, CaiT).
    #[serde(default)]
    pub layer_scale: bool,
    /// Whether there is a class token. ViTDet drops that of its pretrained weights, and windows need it dropped.
    #[serde(default = "super::yes")]
    pub cls_token: bool,
    /// Register tokens after the class token.
    #[serde(default)]
    pub reg_tokens: usize,
    /// Whether only patches get a position embedding.
    #[serde(default)]
    pub no_embed_class: bool,
    /// Rows and columns of the stored position embedding.
    pub pos_embed_grid: [usize; 2],
    /// Attention in windows with global blocks in between; `null` lets every block see the whole image.
    #[serde(default)]
    pub window: Option<WindowConfig>,
    /// Decomposed relative positions in every block; `null` has none.
    #[serde(default)]
    pub rel_pos: Option<RelPosConfig>,
    /// The pretrained checkpoint; without one the backbone starts at random.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// Stochastic depth: the last block's rate, rising linearly from 0.
    #[serde(default)]
    pub drop_path: f64,
}

/// Windowed attention (ViTDet, Li et al., arXiv 2203.16527, §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Side of a window in patches.
    pub size: usize,
    /// The blocks (from 0, rising) that see the whole image.
    pub global_blocks: Vec<usize>,
    /// What fills windows at the right and lower edge.
    #[serde(default)]
    pub padding: WindowPadding,
}

/// What fills windows that reach over the right or lower edge of the token grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowPadding {
    /// Zeros in each windowed block, after its norm (ViTDet's way).
    #[default]
    Tokens,
    /// Patches of zeros: images are padded to a multiple of patch × window, and maps are cropped back.
    Images,
}

/// Decomposed relative positions (MViTv2, arXiv 2112.01526, Eq. 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelPosConfig {
    /// Rows and columns of patches that the tables of global blocks are for, in ViTDet those of the training image: [64, 64].
    /// Images of other grids interpolate them; windows have tables of their own size.
    pub grid: [usize; 2],
}

/// Named sizes (Dosovitskiy et al., arXiv 2010.11929, Table 1; Ti and S from DeiT, arXiv 2012.12877).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 192 × 12, 3 heads.
    VitTi,
    /// 384 × 12, 6 heads.
    VitS,
    /// 768 × 12, 12 heads.
    VitB,
    /// 1024 × 24, 16 heads.
    VitL,
    /// 1280 × 32, 16 heads.
    VitH,
}

impl Arch {
    /// Width of a token.
    pub fn embed_dim(self) -> usize {
        self.sizes().0
    }

    /// Number of blocks.
    pub fn depth(self) -> usize {
        self.sizes().1
    }

    /// Attention heads.
    pub fn num_heads(self) -> usize {
        self.sizes().2
    }

    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::VitTi => (192, 12, 3),
            Self::VitS => (384, 12, 6),
            Self::VitB => (768, 12, 12),
            Self::VitL => (1024, 24, 16),
            Self::VitH => (1280, 32, 16),
        }
    }
}
