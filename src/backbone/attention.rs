//! Layer norm, self-attention and layer scale of a block: names `norm1`, `attn.qkv`, `attn.proj`, `ls1`.

use candle_core::{Result, Tensor};

use super::Dims;
use super::layers::{NORM_EPS, detached, layer_norm, layer_scale, linear};
use crate::ops::AttentionBranch;
use crate::params::Scope;

/// The branch of the block at `scope`.
pub(super) fn attention_branch(dims: &Dims, scope: &Scope) -> Result<AttentionBranch> {
    let attn = scope.pp("attn");
    Ok(AttentionBranch {
        norm: layer_norm(dims.dim, &scope.pp("norm1"))?,
        eps: NORM_EPS,
        qkv: linear(dims.dim, 3 * dims.dim, &attn.pp("qkv"))?,
        proj: linear(dims.dim, dims.dim, &attn.pp("proj"))?,
        gamma: layer_scale(dims, &scope.pp("ls1"))?,
        heads: dims.heads,
    })
}

/// The same branch without gradients for its weights, sharing their storage.
pub(super) fn detached_attention(branch: &AttentionBranch) -> AttentionBranch {
    AttentionBranch {
        norm: detached(&branch.norm),
        eps: branch.eps,
        qkv: detached(&branch.qkv),
        proj: detached(&branch.proj),
        gamma: branch.gamma.as_ref().map(Tensor::detach),
        heads: branch.heads,
    }
}
