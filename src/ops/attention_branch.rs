//! The attention half of a block: γ · proj(attention(qkv(LN x))).

use candle_core::{Result, Tensor};

use super::{layer_norm, linear, self_attention};

/// The parameters of an attention half block, each pair (weight, bias); cheap clones of the layers' tensors.
#[derive(Debug, Clone)]
pub struct AttentionBranch {
    /// Of the layer norm, `[C]` each.
    pub norm: (Tensor, Tensor),
    /// Of the layer norm.
    pub eps: f64,
    /// `[3C, C]` and `[3C]`.
    pub qkv: (Tensor, Tensor),
    /// `[C, C]` and `[C]`.
    pub proj: (Tensor, Tensor),
    /// LayerScale, `[C]`.
    pub gamma: Option<Tensor>,
    /// How many heads.
    pub heads: usize,
}

impl AttentionBranch {
    /// γ · proj(attention(qkv(LN x))), without the residual; `x`: `[B, N, C]`; `keep` as in [`self_attention`].
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(&self, x: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        let normed = layer_norm(x, &self.norm.0, &self.norm.1, self.eps)?;
        let attended =
            self_attention(&linear(&normed, &self.qkv.0, Some(&self.qkv.1))?, self.heads, keep)?;
        let y = linear(&attended, &self.proj.0, Some(&self.proj.1))?;
        match &self.gamma {
            Some(gamma) => y.broadcast_mul(gamma),
            None => Ok(y),
        }
    }
}
