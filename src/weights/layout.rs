//! What a checkpoint says about the model that it belongs to.

use std::fmt::{Display, Formatter};

use super::checkpoint::Tensors;

/// The sizes of a vision transformer, read off its tensors (timm's names).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Hidden width of the MLP.
    pub hidden: usize,
    /// Whether blocks scale their branches.
    pub layer_scale: bool,
    /// Register tokens.
    pub registers: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// Whether there is a class token.
    pub cls_token: bool,
    /// Rows and columns of patches that each block's relative positions are for; empty without them.
    pub rel_pos: Vec<(usize, usize)>,
}

impl Layout {
    /// The layout of a backbone whose names start with `prefix` (with its dot, or empty); `None` if it is not a ViT.
    pub fn of(tensors: &Tensors, prefix: &str) -> Option<Self> {
        let dims = |name: &str| Some(tensors.get(&format!("{prefix}{name}"))?.dims());
        let &[width, 3, patch, _] = dims("patch_embed.proj.weight")? else { return None };
        let block = |name: &str| {
            name.strip_prefix(prefix)?.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
        };
        let depth =
            tensors.keys().filter_map(|name| block(name)).max().map_or(0, |last: usize| last + 1);
        let side = |block: usize, axis: char| {
            Some(dims(&format!("blocks.{block}.attn.rel_pos_{axis}"))?.first()?.div_ceil(2))
        };
        Some(Self {
            width,
            depth,
            patch,
            hidden: *dims("blocks.0.mlp.fc1.weight")?.first()?,
            layer_scale: dims("blocks.0.ls1.gamma").is_some(),
            registers: dims("reg_token").map_or(0, |dims| dims.get(1).copied().unwrap_or(0)),
            positions: dims("pos_embed").and_then(|dims| dims.get(1).copied()).unwrap_or(0),
            cls_token: dims("cls_token").is_some(),
            rel_pos: (0..depth).filter_map(|i| Some((side(i, 'h')?, side(i, 'w')?))).collect(),
        })
    }

    /// The named size of this width and depth in a config.
    pub fn arch(&self) -> Option<&'static str> {
        match (self.width, self.depth) {
            (192, 12) => Some("vit_ti"),
            (384, 12) => Some("vit_s"),
            (768, 12) => Some("vit_b"),
            (1024, 24) => Some("vit_l"),
            (1280, 32) => Some("vit_h"),
            _ => None,
        }
    }

    /// The lines of a config's `backbone` section that fit the file.
    pub fn config(&self) -> String {
        let mut lines = match self.arch() {
            Some(arch) => vec![format!("arch: {arch}")],
            None => vec![format!("embed_dim: {}, depth: {}, num_heads: …", self.width, self.depth)],
        };
        if self.hidden != 4 * self.width {
            lines.push(format!("mlp_ratio: {}", self.hidden as f64 / self.width as f64));
        }
        lines.push(format!("patch_size: {}, layer_scale: {}", self.patch, self.layer_scale));
        if self.registers > 0 {
            lines.push(format!("reg_tokens: {}", self.registers));
        }
        if let Some((prefix, side)) = square_grid(self.positions, self.registers) {
            if prefix == 0 {
                lines.push("no_embed_class: true".into());
            }
            lines.push(format!("pos_embed_grid: [{side}, {side}]"));
        }
        if !self.cls_token {
            lines.push("cls_token: false".into());
        }
        lines.extend(self.windows());
        lines.join(", ")
    }
}

impl Layout {
    /// Windows and relative positions, as far as the tables tell: blocks with larger ones see the whole image.
    fn windows(&self) -> Option<String> {
        let largest = *self.rel_pos.iter().max()?;
        let grid = format!("rel_pos: {{ grid: [{}, {}] }}", largest.0, largest.1);
        let smallest = *self.rel_pos.iter().min()?;
        if smallest == largest || smallest.0 != smallest.1 {
            return Some(grid);
        }
        let global = self.rel_pos.iter().enumerate().filter(|(_, side)| **side == largest);
        let global: Vec<String> = global.map(|(block, _)| block.to_string()).collect();
        let (size, global) = (smallest.0, global.join(", "));
        Some(format!("window: {{ size: {size}, global_blocks: [{global}] }}, {grid}"))
    }
}

/// How many of a position embedding's `rows` belong to prefix tokens if the others are a square, and its side.
pub(super) fn square_grid(rows: usize, registers: usize) -> Option<(usize, usize)> {
    [1 + registers, 1, 0].into_iter().find_map(|prefix| {
        let patches = rows.checked_sub(prefix).filter(|&patches| patches > 0)?;
        let side = patches.isqrt();
        (side * side == patches).then_some((prefix, side))
    })
}

impl Display for Layout {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { width, depth, patch, hidden, positions, .. } = self;
        write!(
            f,
            "ViT of width {width}, depth {depth}, MLP {hidden}, patch {patch}, {positions} positions"
        )?;
        if self.layer_scale {
            f.write_str(", layer scale")?;
        }
        if !self.rel_pos.is_empty() {
            f.write_str(", relative positions")?;
        }
        match self.registers {
            0 => Ok(()),
            count => write!(f, ", {count} registers"),
        }
    }
}
