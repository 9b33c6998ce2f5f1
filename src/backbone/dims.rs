//! The sizes of a backbone, from a named architecture or one by one.

use candle_core::{Result, bail};

use crate::config::{Arch, BackboneConfig, WindowConfig, WindowPadding, validate};

/// The resolved sizes of a backbone.
#[derive(Debug, Clone, PartialEq)]
pub struct Dims {
    /// Width of a token.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub hidden: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Class tokens: 1 or 0.
    pub cls_tokens: usize,
    /// Register tokens after the class token.
    pub reg_tokens: usize,
    /// Windows in which blocks attend.
    pub window: Option<WindowConfig>,
    /// Rows and columns that the relative positions of global blocks are for.
    pub rel_pos: Option<(usize, usize)>,
    /// Whether blocks scale their branches.
    pub layer_scale: bool,
    /// The last block's rate of stochastic depth.
    pub drop_path: f64,
}

impl Dims {
    /// The sizes that `cfg` asks for.
    ///
    /// # Errors
    /// If `cfg` names neither an architecture nor all sizes, or they do not fit together.
    pub fn new(cfg: &BackboneConfig) -> Result<Self> {
        let (Some(dim), Some(depth), Some(heads)) = (
            cfg.embed_dim.or(cfg.arch.map(Arch::embed_dim)),
            cfg.depth.or(cfg.arch.map(Arch::depth)),
            cfg.num_heads.or(cfg.arch.map(Arch::num_heads)),
        ) else {
            bail!("`backbone` needs `arch`, or `embed_dim`, `depth` and `num_heads`");
        };
        if heads == 0 || dim % heads != 0 {
            bail!("`backbone`: {heads} attention heads do not divide a width of {dim}");
        }
        if cfg.patch_size == 0 || depth == 0 {
            bail!("`backbone`: `patch_size` and `depth` must be at least 1");
        }
        if let Err(reason) = validate::places(cfg) {
            bail!("{reason}");
        }
        Ok(Self {
            dim,
            depth,
            heads,
            hidden: (dim as f64 * cfg.mlp_ratio.unwrap_or(4.0)) as usize,
            patch: cfg.patch_size,
            cls_tokens: usize::from(cfg.cls_token),
            reg_tokens: cfg.reg_tokens,
            window: cfg.window.clone(),
            rel_pos: cfg.rel_pos.map(|positions| positions.grid.into()),
            layer_scale: cfg.layer_scale,
            drop_path: cfg.drop_path,
        })
    }

    /// Class and register tokens before the patches.
    pub fn prefix(&self) -> usize {
        self.cls_tokens + self.reg_tokens
    }

    /// Side of the windows of block `index`; `None` where it sees the whole image.
    pub fn window_of(&self, index: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        (!window.global_blocks.contains(&index)).then_some(window.size)
    }

    /// Rows and columns of patches of an image of `size` (height, width) pixels, padded to whole patches.
    pub fn grid(&self, size: (usize, usize)) -> (usize, usize) {
        (size.0.div_ceil(self.patch), size.1.div_ceil(self.patch))
    }

    /// What the blocks work on: [`Dims::grid`] and, where images are padded to whole windows, the padding.
    pub fn padded_grid(&self, size: (usize, usize)) -> (usize, usize) {
        let (rows, columns) = self.grid(size);
        match &self.window {
            Some(WindowConfig { size, padding: WindowPadding::Images, .. }) => {
                (rows.next_multiple_of(*size), columns.next_multiple_of(*size))
            }
            _ => (rows, columns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(arch: Arch) -> BackboneConfig {
        BackboneConfig {
            arch: Some(arch),
            embed_dim: None,
            depth: None,
            num_heads: None,
            mlp_ratio: None,
            patch_size: 16,
            layer_scale: false,
            cls_token: true,
            reg_tokens: 4,
            no_embed_class: false,
            pos_embed_grid: [14, 14],
            window: None,
            rel_pos: None,
            weights: None,
            drop_path: 0.0,
        }
    }

    #[test]
    fn explicit_sizes_override_the_named_ones() -> Result<()> {
        let dims = Dims::new(&BackboneConfig { depth: Some(6), ..named(Arch::VitB) })?;
        assert_eq!(
            (dims.dim, dims.depth, dims.heads, dims.hidden, dims.prefix()),
            (768, 6, 12, 3072, 5)
        );
        Ok(())
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_reason() {
        let reason = |cfg: &BackboneConfig| Dims::new(cfg).unwrap_err().to_string();
        let nameless = BackboneConfig { arch: None, embed_dim: Some(12), ..named(Arch::VitB) };
        assert!(reason(&nameless).contains("needs `arch`, or"));
        let odd = BackboneConfig { num_heads: Some(5), ..named(Arch::VitB) };
        assert!(reason(&odd).contains("5 attention heads do not divide a width of 768"));
        let window = Some(WindowConfig {
            size: 14,
            global_blocks: vec![2, 12],
            padding: WindowPadding::Tokens,
        });
        let beyond = BackboneConfig { window, ..named(Arch::VitB) };
        assert!(reason(&beyond).contains("names block 12, but the 12 blocks count from 0"));
    }

    #[test]
    fn windows_and_class_tokens_exclude_each_other() {
        let window = Some(WindowConfig {
            size: 14,
            global_blocks: vec![2, 5, 8, 11],
            padding: WindowPadding::Images,
        });
        let with_class = BackboneConfig { window, ..named(Arch::VitB) };
        let reason = Dims::new(&with_class).unwrap_err().to_string();
        assert!(reason.contains("set `backbone.cls_token: false`"), "{reason}");
        let registers = BackboneConfig { cls_token: false, ..with_class };
        let reason = Dims::new(&registers).unwrap_err().to_string();
        assert!(reason.contains("`backbone.reg_tokens` must be 0"), "{reason}");
        let dims = Dims::new(&BackboneConfig { reg_tokens: 0, ..registers }).unwrap();
        assert_eq!((dims.prefix(), dims.window_of(2), dims.window_of(3)), (0, None, Some(14)));
        // 1024 pixels are 64 patches of 16, or five windows of 14 patches.
        assert_eq!((dims.grid((1024, 1000)), dims.padded_grid((1024, 1000))), ((64, 63), (70, 70)));
    }
}
