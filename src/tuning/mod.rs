//! What is trained: the parts that tuning methods add to a backbone, one file per method.
//!
//! A block owns a [`BlockTuning`] and asks it where methods act: for its weights (LoRA, RLRR, SSF, (IA)³), for its tokens
//! (prompts), for its attention (memory) and beside or after the MLP (adapters). What acts once per image is in
//! `EmbeddingTuning`. Which pretrained weights are trained themselves is a matter of their roles.

use candle_core::{Result, Tensor};

use crate::backbone::Dims;
use crate::config::{Placement, RlrrConfig, TuningConfig};
use crate::ops::AttentionBranch;
use crate::params::Scope;
use crate::rng::Stream;

mod adapter;
mod added;
pub mod flops;
mod ia3;
mod lora;
mod memory;
mod moe_adapter;
mod prompts;
mod rlrr;
mod ssf;
mod weights;

pub use adapter::Adapter;
pub(crate) use added::AddedTasks;
use ia3::Ia3;
use lora::Lora;
use memory::Memory;
pub use moe_adapter::MoeAdapter;
use prompts::Prompts;
use rlrr::Rlrr;
use ssf::{ScaleShift, Ssf, Start};
pub use weights::{Layer, Pair};

/// What the tuning methods add to one block.
#[derive(Debug, Clone)]
pub struct BlockTuning {
    weights: weights::BlockWeights,
    prompts: Option<Prompts>,
    memory: Option<Memory>,
    adaptmlp: Option<AnyAdapter>,
    placement: Placement,
}

#[derive(Debug, Clone)]
enum AnyAdapter {
    One(Adapter),
    Experts(MoeAdapter),
}

impl AnyAdapter {
    fn forward(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Tensor> {
        match self {
            Self::One(adapter) => adapter.forward(x, streams),
            Self::Experts(adapter) => adapter.forward(x, streams),
        }
    }
}

impl BlockTuning {
    /// The parts of block `index` below `scope` (the backbone, trainable).
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &TuningConfig, dims: &Dims, index: usize, scope: &Scope) -> Result<Self> {
        let block = scope.pp("blocks").pp(index);
        let adapter = |name: &str| match cfg.adapter {
            None => Ok(None),
            Some(cfg) if cfg.experts > 1 => {
                Ok(Some(AnyAdapter::Experts(MoeAdapter::new(&cfg, dims.dim, &block.pp(name))?)))
            }
            Some(cfg) => Ok::<_, candle_core::Error>(Some(AnyAdapter::One(Adapter::new(
                &cfg,
                dims.dim,
                &block.pp(name),
            )?))),
        };
        // The first layer's prompts join the tokens as they are embedded.
        let prompts = match cfg.vpt {
            Some(cfg) if index > 0 => Prompts::new(cfg, dims, index, scope)?,
            _ => None,
        };
        let memory = match &cfg.memory {
            Some(cfg) => match cfg.earlier.first().unwrap_or(&cfg.tokens) {
                0 => None,
                &rows => Some(Memory::new(cfg, (rows, dims.dim), (0, index), scope)?),
            },
            None => None,
        };
        Ok(Self {
            weights: weights::BlockWeights::new(cfg, dims, &block)?,
            prompts,
            memory,
            adaptmlp: adapter("adaptmlp")?,
            placement: cfg.adapter.map_or(Placement::Parallel, |adapter| adapter.placement),
        })
    }

    /// The same parts without gradients, sharing their storage.
    pub(crate) fn detached(&self) -> Self {
        let adaptmlp = self.adaptmlp.as_ref().map(|adapter| match adapter {
            AnyAdapter::One(adapter) => AnyAdapter::One(adapter.detached()),
            AnyAdapter::Experts(adapter) => AnyAdapter::Experts(adapter.detached()),
        });
        Self {
            weights: self.weights.detached(),
            prompts: self.prompts.as_ref().map(Prompts::detached),
            memory: self.memory.as_ref().map(Memory::detached),
            adaptmlp,
            placement: self.placement,
        }
    }

    /// Weight and bias that `layer` computes with instead of its own.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn effective(&self, layer: Layer, pair: &Pair) -> Result<Pair> {
        self.weights.effective(layer, pair)
    }

    /// All that [`BlockTuning::effective`] depends on besides the layer's own pair.
    pub(crate) fn weight_tensors(&self) -> Vec<&Tensor> {
        self.weights.tensors()
    }

    /// The tokens `[B, N, C]` as the block takes them: with its own prompts in place of the last layer's.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn enter(&self, x: &Tensor) -> Result<Tensor> {
        match &self.prompts {
            Some(prompts) => prompts.replaced(x),
            None => Ok(x.clone()),
        }
    }

    /// The attention `branch`, with the memory among the keys; arguments as in [`AttentionBranch::forward`].
    ///
    /// # Errors
    /// As [`AttentionBranch::forward`].
    pub fn attend(
        &self,
        branch: &AttentionBranch,
        x: &Tensor,
        grid: (usize, usize),
        keep: Option<&Tensor>,
    ) -> Result<Tensor> {
        match (&self.memory, keep) {
            (None, keep) => branch.forward(x, grid, keep),
            (Some(memory), None) => memory.attend(branch, x),
            (Some(_), Some(_)) => {
                candle_core::bail!("memory cannot be had where dispatch restricts the keys")
            }
        }
    }

    /// `y`, the tokens after the MLP half, with the adapter's part, which reads `x`, the tokens before it, or `y`; both
    /// `[B, N, C]`. Dropout draws from `streams`, one per image; none outside training.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn adapt_mlp(&self, x: &Tensor, y: Tensor, streams: &mut [Stream]) -> Result<Tensor> {
        let Some(adapter) = &self.adaptmlp else { return Ok(y) };
        match self.placement {
            Placement::Parallel => y + adapter.forward(x, streams)?,
            Placement::Sequential => &y + adapter.forward(&y, streams)?,
        }
    }
}

/// What the tuning methods add before and after the blocks.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingTuning {
    patch: Option<ScaleShift>,
    norm: Option<ScaleShift>,
    prompts: Option<Prompts>,
}

impl EmbeddingTuning {
    /// The parts below `scope` (the backbone, trainable).
    pub(crate) fn new(cfg: &TuningConfig, dims: &Dims, scope: &Scope) -> Result<Self> {
        let start = match (cfg.ssf, cfg.rlrr) {
            (Some(_), _) => Some(Start::Near),
            (None, rlrr) => rlrr.map(|cfg: RlrrConfig| rlrr::start(cfg)),
        };
        let part = |name: &str| {
            start.map(|start| ScaleShift::new(dims.dim, start, &scope.pp(name))).transpose()
        };
        let prompts = match cfg.vpt {
            Some(cfg) => Prompts::new(cfg, dims, 0, scope)?,
            None => None,
        };
        Ok(Self { patch: part("ssf_patch")?, norm: part("ssf_norm")?, prompts })
    }

    pub(crate) fn detached(&self) -> Self {
        Self {
            patch: self.patch.as_ref().map(ScaleShift::detached),
            norm: self.norm.as_ref().map(ScaleShift::detached),
            prompts: self.prompts.as_ref().map(Prompts::detached),
        }
    }

    /// What the patch projection computes with.
    pub(crate) fn patch(&self, pair: &Pair) -> Result<Pair> {
        self.patch.as_ref().map_or_else(|| Ok(pair.clone()), |part| part.apply(pair.clone()))
    }

    /// What the final norm computes with.
    pub(crate) fn norm(&self, pair: &Pair) -> Result<Pair> {
        self.norm.as_ref().map_or_else(|| Ok(pair.clone()), |part| part.apply(pair.clone()))
    }

    /// All that the two depend on besides the pairs.
    pub(crate) fn weight_tensors(&self) -> Vec<&Tensor> {
        self.patch.iter().chain(&self.norm).flat_map(ScaleShift::tensors).collect()
    }

    /// The tokens with the first prompts.
    pub(crate) fn with_prompts(&self, x: Tensor) -> Result<Tensor> {
        self.prompts.as_ref().map_or_else(|| Ok(x.clone()), |prompts| prompts.inserted(&x))
    }
}
