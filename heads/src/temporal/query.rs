//! The published head: a learned query attends once over all tokens of all frames (\[DyT\], appendix, and its released
//! code). It has no frame positions, so the order of the frames is lost on it.

use candle_core::{Result, Tensor, bail};
use rescatter::ops;
use rescatter::params::{Init, Scope};
use serde::{Deserialize, Serialize};

/// ε of the layer norms.
const NORM_EPS: f64 = 1e-6;

/// The section `head.temporal_query`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemporalQueryConfig {
    /// Attention heads; by default one per 64 channels, as the published ViTs have.
    pub num_heads: Option<usize>,
    /// Dropout before the classifier.
    pub dropout: f64,
}

/// pooled = proj(softmax(q kᵀ / √(C / heads)) v) with q from the learned query and k, v from the tokens, each with a layer
/// norm of its own; no residual.
#[derive(Debug)]
pub struct QueryPool {
    query: Tensor,
    heads: usize,
    norm_q: (Tensor, Tensor),
    norm_k: (Tensor, Tensor),
    norm_v: (Tensor, Tensor),
    q: (Tensor, Tensor),
    /// The published layer has no bias here: softmax would not see it.
    k: Tensor,
    v: (Tensor, Tensor),
    proj: (Tensor, Tensor),
}

impl QueryPool {
    /// `query_token` and `attentive_blocks.*` below `scope`, for tokens of `dim` channels.
    ///
    /// # Errors
    /// If the heads do not divide the channels, or the parameters exist with other shapes.
    pub fn new(dim: usize, heads: usize, scope: &Scope) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("`head.temporal_query.num_heads`: {heads} heads do not divide {dim} channels");
        }
        let block = scope.pp("attentive_blocks");
        let attention = block.pp("cross_attn");
        let norm = |name: &str| -> Result<(Tensor, Tensor)> {
            let scope = block.pp(name);
            Ok((
                scope.param("weight", dim, Init::Const(1.0))?,
                scope.param("bias", dim, Init::Const(0.0))?,
            ))
        };
        let weight = |name: &str| {
            attention.pp(name).param("weight", (dim, dim), Init::TruncatedNormal(0.02))
        };
        let bias = |name: &str| attention.param(name, dim, Init::Const(0.0));
        Ok(Self {
            // The published zeros stay zeros behind the norm until its bias moves; noise starts with a direction.
            query: scope.param("query_token", (1, 1, dim), Init::TruncatedNormal(0.02))?,
            heads,
            norm_q: norm("norm1_q")?,
            norm_k: norm("norm1_k")?,
            norm_v: norm("norm1_v")?,
            q: (weight("q")?, bias("q_bias")?),
            k: weight("k")?,
            v: (weight("v")?, bias("v_bias")?),
            proj: (weight("proj")?, attention.pp("proj").param("bias", dim, Init::Const(0.0))?),
        })
    }

    /// Tokens `[B·T, N, C]` after the final norm, the frames of a clip adjacent → `[B, C]`.
    ///
    /// # Errors
    /// If there are no whole clips, or the widths differ.
    pub fn forward(&self, tokens: &Tensor, frames: usize) -> Result<Tensor> {
        let (batch, keys) = super::clips(tokens, frames)?;
        let dim = tokens.dim(2)?;
        let x = tokens.reshape((batch, keys, dim))?;
        let normed =
            |x: &Tensor, norm: &(Tensor, Tensor)| ops::layer_norm(x, &norm.0, &norm.1, NORM_EPS);
        let split = |x: Tensor| -> Result<Tensor> {
            let (batch, tokens, _) = x.dims3()?;
            x.reshape((batch, tokens, self.heads, dim / self.heads))?.transpose(1, 2) // [B, H, N, C/H]
        };
        let q =
            split(ops::linear(&normed(&self.query, &self.norm_q)?, &self.q.0, Some(&self.q.1))?)?;
        let k = split(ops::linear(&normed(&x, &self.norm_k)?, &self.k, None)?)?;
        let v = split(ops::linear(&normed(&x, &self.norm_v)?, &self.v.0, Some(&self.v.1))?)?;
        let q = q.broadcast_as((batch, self.heads, 1, dim / self.heads))?;
        let pooled = ops::attention(&q, &k, &v, None)?.reshape((batch, dim))?;
        ops::linear(&pooled, &self.proj.0, Some(&self.proj.1))
    }
}
