//! Layer norm, MLP and layer scale of a block: names `norm2`, `mlp.fc1`, `mlp.fc2`, `ls2`.

use candle_core::{Result, Tensor};

use super::Dims;
use super::layers::{NORM_EPS, detached, layer_norm, layer_scale, linear};
use crate::ops::MlpBranch;
use crate::params::Scope;

/// The branch of the block at `scope`.
pub(super) fn mlp_branch(dims: &Dims, scope: &Scope) -> Result<MlpBranch> {
    let mlp = scope.pp("mlp");
    Ok(MlpBranch {
        norm: layer_norm(dims.dim, &scope.pp("norm2"))?,
        eps: NORM_EPS,
        fc1: linear(dims.dim, dims.hidden, &mlp.pp("fc1"))?,
        fc2: linear(dims.hidden, dims.dim, &mlp.pp("fc2"))?,
        gamma: layer_scale(dims, &scope.pp("ls2"))?,
    })
}

/// The same branch without gradients for its weights, sharing their storage.
pub(super) fn detached_mlp(branch: &MlpBranch) -> MlpBranch {
    MlpBranch {
        norm: detached(&branch.norm),
        eps: branch.eps,
        fc1: detached(&branch.fc1),
        fc2: detached(&branch.fc2),
        gamma: branch.gamma.as_ref().map(Tensor::detach),
    }
}
