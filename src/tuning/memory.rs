//! Learnable memory (Sandler et al., CVPR 2022, arXiv 2203.15243): rows that every layer's tokens may read as further keys
//! and values. They are no queries and do not go on to the MLP or the next layer.

use candle_core::{Result, Tensor};

use crate::config::MemoryConfig;
use crate::ops::AttentionBranch;
use crate::params::{Init, Scope};

/// The memory of one task in one layer, `memory.TASK.LAYER` `[1, m, C]`.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    rows: Tensor,
    before_norm: bool,
    patches_read: bool,
}

impl Memory {
    /// Of `rows` rows of width `dim` below `scope` (the backbone).
    pub(super) fn new(
        cfg: &MemoryConfig,
        (rows, dim): (usize, usize),
        (task, layer): (usize, usize),
        scope: &Scope,
    ) -> Result<Self> {
        let scope = scope.pp("memory").pp(task);
        Ok(Self {
            rows: scope.param(&layer.to_string(), (1, rows, dim), Init::Normal(0.02))?,
            before_norm: cfg.before_norm,
            patches_read: cfg.patches_read,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { rows: self.rows.detach(), ..*self }
    }

    /// The attention `branch` of the tokens `x` `[B, N, C]`, all of which (or the class token alone, the first) read the
    /// memory too.
    pub(super) fn attend(&self, branch: &AttentionBranch, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        if !self.patches_read {
            let plain = branch.forward(x, (0, 0), None)?;
            let normed = branch.normed(x)?;
            let keys = Tensor::cat(&[&branch.keys(&normed)?, &self.keys(branch, batch)?], 1)?;
            let class = branch.ask(&normed.narrow(1, 0, 1)?, &keys)?;
            return Tensor::cat(&[&class, &plain.narrow(1, 1, tokens - 1)?], 1);
        }
        let rows = self.rows.broadcast_as((batch, self.rows.dim(1)?, self.rows.dim(2)?))?;
        if self.before_norm {
            // Rows that pass the norm are tokens whose answers nobody wants.
            let all = Tensor::cat(&[x, &rows], 1)?;
            branch.forward(&all, (0, 0), None)?.narrow(1, 0, tokens)?.contiguous()
        } else {
            branch.forward_with(x, &rows.contiguous()?)
        }
    }

    /// Keys and values of the rows for every image of a batch, `[B, m, 2C]`.
    pub(crate) fn keys(&self, branch: &AttentionBranch, batch: usize) -> Result<Tensor> {
        let rows = if self.before_norm { branch.normed(&self.rows)? } else { self.rows.clone() };
        let keys = branch.keys(&rows)?;
        let (_, rows, width) = keys.dims3()?;
        keys.broadcast_as((batch, rows, width))?.contiguous()
    }
}
