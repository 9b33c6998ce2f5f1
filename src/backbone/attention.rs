//! Layer norm, self-attention and layer scale of a block: names `norm1`, `attn.qkv`, `attn.proj`, `attn.rel_pos_h`,
//! `attn.rel_pos_w`, `ls1`.

use candle_core::{Result, Tensor};

use super::Dims;
use super::layers::{NORM_EPS, detached, layer_norm, layer_scale, linear};
use crate::ops::{AttentionBranch, RelativePosition};
use crate::params::{Init, Scope};

/// The branch of block `index` at `scope`.
pub(super) fn attention_branch(
    dims: &Dims,
    index: usize,
    scope: &Scope,
) -> Result<AttentionBranch> {
    let attn = scope.pp("attn");
    let window = dims.window_of(index);
    let table = |name: &str, side: usize| {
        // ViTDet starts from no preference for any distance.
        attn.param(name, (2 * side - 1, dims.dim / dims.heads), Init::Const(0.0))
    };
    let rel_pos = match dims.rel_pos.map(|grid| window.map_or(grid, |size| (size, size))) {
        Some((rows, columns)) => Some(RelativePosition {
            height: table("rel_pos_h", rows)?,
            width: table("rel_pos_w", columns)?,
        }),
        None => None,
    };
    Ok(AttentionBranch {
        norm: layer_norm(dims.dim, &scope.pp("norm1"))?,
        eps: NORM_EPS,
        qkv: linear(dims.dim, 3 * dims.dim, &attn.pp("qkv"))?,
        proj: linear(dims.dim, dims.dim, &attn.pp("proj"))?,
        gamma: layer_scale(dims, &scope.pp("ls1"))?,
        heads: dims.heads,
        window,
        rel_pos,
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
        window: branch.window,
        rel_pos: branch.rel_pos.as_ref().map(RelativePosition::detach),
    }
}
