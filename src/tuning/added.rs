//! Tasks added to a trained model (arXiv 2203.15243 §3, *extension*): each has a class token and a memory per layer.
//!
//! The class token of task t attends to the model's own tokens, to the class tokens of the tasks up to its own and to its
//! memory; nothing attends to it. So it only reads: the model computes its tokens as before, and the added tokens pass
//! each block beside it, on the block's own weights.

use candle_core::{Result, Tensor};

use super::memory::Memory;
use crate::backbone::Dims;
use crate::config::MemoryConfig;
use crate::ops::AttentionBranch;
use crate::params::{Init, Scope};

/// The added tasks, in the order in which they were added.
#[derive(Debug, Clone)]
pub(crate) struct AddedTasks {
    tasks: Vec<Task>,
}

#[derive(Debug, Clone)]
struct Task {
    /// `task_cls.(t−1)`, `[1, 1, C]`.
    token: Tensor,
    /// One per block; none for a task without memory.
    memory: Vec<Memory>,
}

impl AddedTasks {
    /// The tasks after the first of `cfg`, nothing without any: the last one below `own`, the earlier ones, which are not
    /// trained any more, below `kept` (both the backbone).
    pub(crate) fn new(
        cfg: &MemoryConfig,
        dims: &Dims,
        kept: &Scope,
        own: &Scope,
    ) -> Result<Option<Self>> {
        let last = cfg.earlier.len();
        let task = |t: usize| -> Result<Task> {
            let scope = if t == last { own } else { kept };
            let rows = cfg.earlier.get(t).copied().unwrap_or(cfg.tokens);
            let depth = if rows == 0 { 0 } else { dims.depth };
            let memory = |i| Memory::new(cfg, (rows, dims.dim), (t, i), scope);
            let name = (t - 1).to_string();
            Ok(Task {
                token: scope.pp("task_cls").param(&name, (1, 1, dims.dim), Init::Normal(0.02))?,
                memory: (0..depth).map(memory).collect::<Result<_>>()?,
            })
        };
        let tasks = (1..=last).map(task).collect::<Result<Vec<_>>>()?;
        Ok((!tasks.is_empty()).then_some(Self { tasks }))
    }

    /// The same tasks without gradients, sharing their storage.
    pub(crate) fn detached(&self) -> Self {
        let detached = |task: &Task| Task {
            token: task.token.detach(),
            memory: task.memory.iter().map(Memory::detached).collect(),
        };
        Self { tasks: self.tasks.iter().map(detached).collect() }
    }

    /// The class tokens before the first block, one `[B, 1, C]` per task.
    pub(crate) fn tokens(&self, batch: usize) -> Result<Vec<Tensor>> {
        let token = |task: &Task| task.token.repeat((batch, 1, 1));
        self.tasks.iter().map(token).collect()
    }

    /// What the attention of block `index` adds to the class tokens `own`; `x` `[B, N, C]` are the model's tokens before
    /// the block.
    pub(crate) fn attend(
        &self,
        branch: &AttentionBranch,
        index: usize,
        x: &Tensor,
        own: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let mut keys = vec![branch.keys(&branch.normed(x)?)?];
        let mut answers = Vec::with_capacity(own.len());
        for (task, token) in self.tasks.iter().zip(own) {
            let normed = branch.normed(token)?;
            keys.push(branch.keys(&normed)?);
            let memory = task.memory.get(index).map(|memory| memory.keys(branch, x.dim(0)?));
            let visible: Vec<Tensor> = keys.iter().cloned().chain(memory.transpose()?).collect();
            answers.push(branch.ask(&normed, &Tensor::cat(&visible, 1)?)?);
        }
        Ok(answers)
    }
}
