//! What each variant of \[DyT\] Fig. 3 cuts, and where its adapters sit.

use crate::config::Variant;

/// A part of a block: what one dispatcher decides about, and one adapter stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// Norm and attention.
    Attention,
    /// Norm and MLP.
    Mlp,
    /// Both, one after the other.
    Layer,
}

impl Site {
    /// As statistics and parameters call it: `attn`, `mlp` or `layer`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attn",
            Self::Mlp => "mlp",
            Self::Layer => "layer",
        }
    }
}

impl Variant {
    /// The parts that tokens pass in a block, one after the other.
    pub fn sites(self) -> &'static [Site] {
        match self {
            Self::None | Self::Mlp | Self::Attention | Self::AttentionMlp => {
                &[Site::Attention, Site::Mlp]
            }
            Self::Layer => &[Site::Layer],
        }
    }

    /// Those of them that active tokens alone pass; each has a dispatcher.
    pub fn dispatched(self) -> &'static [Site] {
        match self {
            Self::None => &[],
            Self::Mlp => &[Site::Mlp],
            Self::Attention => &[Site::Attention],
            Self::AttentionMlp => &[Site::Attention, Site::Mlp],
            Self::Layer => &[Site::Layer],
        }
    }

    /// Those of them that an adapter stands beside, for all tokens: where they are dispatched, and beside the MLP of the
    /// dense model.
    pub fn adapted(self) -> &'static [Site] {
        match self {
            Self::None => &[Site::Mlp],
            _ => self.dispatched(),
        }
    }

    /// The dispatchers of `depth` blocks in their order: by the block's number, with the site where a block has several
    /// (`attn.0`, `mlp.0`, `attn.1` …).
    pub fn dispatcher_names(self, depth: usize) -> Vec<String> {
        let name = |block: usize, site: Site| match self.dispatched() {
            [_] => format!("{block}"),
            _ => format!("{}.{block}", site.name()),
        };
        (0..depth)
            .flat_map(|block| self.dispatched().iter().map(move |&site| name(block, site)))
            .collect()
    }
}
