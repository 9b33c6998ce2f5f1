//! What is trained: the parts that tuning methods add to a backbone, one file per method.
//!
//! A block owns a [`BlockTuning`] and asks it where methods act: for its weights (LoRA, RLRR, SSF, (IA)³), for its tokens
//! (prompts, adapter over time), for its attention (memory) and beside or after each part that is dispatched (adapters).
//! What acts once per image is in `EmbeddingTuning`. Which pretrained weights are trained themselves is a matter of their
//! roles.

use candle_core::{Result, Tensor};

use crate::backbone::{Dims, TokenGrid};
use crate::config::{AdapterConfig, Placement, RlrrConfig, TuningConfig};
use crate::dispatch::Site;
use crate::ops::{self, AttentionBranch, Bottleneck};
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
mod st_adapter;
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
pub use st_adapter::StAdapter;
pub use weights::{Layer, Pair};

/// What the tuning methods add to one block.
#[derive(Debug, Clone)]
pub struct BlockTuning {
    weights: weights::BlockWeights,
    prompts: Option<Prompts>,
    memory: Option<Memory>,
    over_time: Option<StAdapter>,
    adapters: Vec<(Site, AnyAdapter)>,
    placement: Placement,
}

#[derive(Debug, Clone)]
enum AnyAdapter {
    One(Adapter),
    Experts(MoeAdapter),
}

impl AnyAdapter {
    fn detached(&self) -> Self {
        match self {
            Self::One(adapter) => Self::One(adapter.detached()),
            Self::Experts(adapter) => Self::Experts(adapter.detached()),
        }
    }

    fn forward(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Tensor> {
        match self {
            Self::One(adapter) => adapter.forward(x, streams),
            Self::Experts(adapter) => adapter.forward(x, streams),
        }
    }
}

impl BlockTuning {
    /// The parts of block `index` below `scope` (the backbone, trainable); adapters stand at `sites`.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(
        cfg: &TuningConfig,
        sites: &[Site],
        dims: &Dims,
        index: usize,
        scope: &Scope,
    ) -> Result<Self> {
        let block = scope.pp("blocks").pp(index);
        let adapter = |cfg: &AdapterConfig, site: Site| {
            let scope = block.pp(format!("adapt{}", site.name()));
            let adapter = match cfg.experts {
                1 => AnyAdapter::One(Adapter::new(cfg, dims.dim, &scope)?),
                _ => AnyAdapter::Experts(MoeAdapter::new(cfg, dims.dim, &scope)?),
            };
            Ok::<_, candle_core::Error>((site, adapter))
        };
        let at_sites = |cfg| sites.iter().map(|&site| adapter(cfg, site)).collect();
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
        let over_time = |cfg| StAdapter::new(cfg, dims.dim, &block.pp("adaptst"));
        Ok(Self {
            weights: weights::BlockWeights::new(cfg, dims, &block)?,
            prompts,
            memory,
            over_time: cfg.st_adapter.as_ref().map(over_time).transpose()?,
            adapters: cfg.adapter.as_ref().map_or_else(|| Ok(Vec::new()), at_sites)?,
            placement: cfg.adapter.map_or(Placement::Parallel, |adapter| adapter.placement),
        })
    }

    /// The same parts without gradients, sharing their storage.
    pub(crate) fn detached(&self) -> Self {
        Self {
            weights: self.weights.detached(),
            prompts: self.prompts.as_ref().map(Prompts::detached),
            memory: self.memory.as_ref().map(Memory::detached),
            over_time: self.over_time.as_ref().map(StAdapter::detached),
            adapters: self.adapters.iter().map(|(site, a)| (*site, a.detached())).collect(),
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

    /// The tokens `[B, N, C]` as the block takes them: with its own prompts in place of the last layer's, and with what the
    /// adapter over time adds from the frames before and after.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn enter(&self, x: &Tensor, places: TokenGrid) -> Result<Tensor> {
        let x = match &self.prompts {
            Some(prompts) => prompts.replaced(x)?,
            None => x.clone(),
        };
        match &self.over_time {
            Some(adapter) => ops::add(&x, &adapter.forward(&x, places)?),
            None => Ok(x),
        }
    }

    /// The attention `branch` of all tokens, with the memory among the keys; arguments as in [`AttentionBranch::forward`].
    ///
    /// # Errors
    /// As [`AttentionBranch::forward`].
    pub fn attend(
        &self,
        branch: &AttentionBranch,
        x: &Tensor,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        match &self.memory {
            None => branch.forward(x, grid, None),
            Some(memory) => memory.attend(branch, x),
        }
    }

    /// x + [`Self::attend`].
    ///
    /// # Errors
    /// As [`Self::attend`].
    pub fn attend_and_add(
        &self,
        branch: &AttentionBranch,
        x: &Tensor,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        match &self.memory {
            None => branch.sum(x, grid, None),
            Some(memory) => ops::add(x, &memory.attend(branch, x)?),
        }
    }

    /// `run`, the part of the block at `site`, with its adapter, which reads `x` `[B, N, C]`, the tokens before it, or what
    /// `run` gives. An adapter that reads `x` is handed to `run`, which may add it in the same step; the others are added
    /// after it. Dropout draws from `streams(number)` of the block's adapter `number`, one stream per image; none outside
    /// training.
    ///
    /// # Errors
    /// If `run` fails, or the width of `x` is another one.
    pub fn adapt(
        &self,
        site: Site,
        x: &Tensor,
        streams: impl FnOnce(u16) -> Vec<Stream>,
        run: impl FnOnce(Option<&Bottleneck>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(number) = self.adapters.iter().position(|(at, _)| *at == site) else {
            return run(None);
        };
        let (adapter, mut streams) = (&self.adapters[number].1, streams(number as u16));
        match (self.placement, adapter) {
            (Placement::Parallel, AnyAdapter::One(adapter)) => {
                run(Some(&adapter.drawn(x, &mut streams)?))
            }
            (Placement::Parallel, AnyAdapter::Experts(adapter)) => {
                ops::add(&run(None)?, &adapter.forward(x, &mut streams)?)
            }
            (Placement::Sequential, adapter) => {
                let y = run(None)?;
                ops::add(&y, &adapter.forward(&y, &mut streams)?)
            }
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
