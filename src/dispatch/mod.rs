//! Who works: the token dispatcher of [DyT] §3.3 and what follows from its decisions.

use candle_core::Tensor;

/// The decisions of every dispatcher in one forward pass, in the order of the blocks. Empty for the dense model.
#[derive(Debug, Clone, Default)]
pub struct KeptStats {
    /// One entry per dispatcher.
    pub layers: Vec<LayerKept>,
}

/// The decisions of one dispatcher.
#[derive(Debug, Clone)]
pub struct LayerKept {
    /// 0 or 1 per patch token, `[B, P]`; while training its gradient is that of the soft value.
    pub mask: Tensor,
    /// `[B, P]`, before noise.
    pub logit: Tensor,
}
