//! The sizes of a backbone, from a named architecture or one by one.

use candle_core::{Result, bail};

use crate::config::{Arch, BackboneConfig};

/// The resolved sizes of a backbone.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// Register tokens after the class token.
    pub reg_tokens: usize,
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
        let named = cfg.arch.map(|arch| match arch {
            Arch::VitTi => (192, 12, 3),
            Arch::VitS => (384, 12, 6),
            Arch::VitB => (768, 12, 12),
            Arch::VitL => (1024, 24, 16),
            Arch::VitH => (1280, 32, 16),
        });
        let (dim, depth, heads) = (cfg.embed_dim, cfg.depth, cfg.num_heads);
        let (Some(dim), Some(depth), Some(heads)) = (
            dim.or(named.map(|sizes| sizes.0)),
            depth.or(named.map(|sizes| sizes.1)),
            heads.or(named.map(|sizes| sizes.2)),
        ) else {
            bail!("`backbone` needs `arch`, or `embed_dim`, `depth` and `num_heads`");
        };
        if heads == 0 || dim % heads != 0 {
            bail!("`backbone`: {heads} attention heads do not divide a width of {dim}");
        }
        if cfg.patch_size == 0 || depth == 0 {
            bail!("`backbone`: `patch_size` and `depth` must be at least 1");
        }
        Ok(Self {
            dim,
            depth,
            heads,
            hidden: (dim as f64 * cfg.mlp_ratio.unwrap_or(4.0)) as usize,
            patch: cfg.patch_size,
            reg_tokens: cfg.reg_tokens,
            layer_scale: cfg.layer_scale,
            drop_path: cfg.drop_path,
        })
    }

    /// Class and register tokens before the patches.
    pub fn prefix(&self) -> usize {
        1 + self.reg_tokens
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
            reg_tokens: 4,
            no_embed_class: false,
            pos_embed_grid: [14, 14],
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
    }
}
