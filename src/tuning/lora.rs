//! Low-rank adaptation (Hu et al., ICLR 2022, arXiv 2106.09685): W' = W + α/r · Up · Down.

use candle_core::{Result, Tensor};

use super::weights::{Layer, Pair};
use crate::backbone::Dims;
use crate::config::{LoraConfig, LoraTarget};
use crate::params::{Init, Scope};

/// `lora.{q,k,v,o,fc1,fc2}.{down,up}.weight`, as far as the config names them; Up starts at 0.
#[derive(Debug, Clone)]
pub(super) struct Lora {
    changes: Vec<Change>,
    factor: f64,
    width: usize,
}

#[derive(Debug, Clone)]
struct Change {
    target: LoraTarget,
    /// `[r, in]`.
    down: Tensor,
    /// `[out, r]`.
    up: Tensor,
}

impl Lora {
    /// Below `scope` (`blocks.i`).
    pub(super) fn new(cfg: &LoraConfig, dims: &Dims, scope: &Scope) -> Result<Self> {
        let change = |&target: &LoraTarget| -> Result<Change> {
            let (name, output, input) = match target {
                LoraTarget::Q => ("q", dims.dim, dims.dim),
                LoraTarget::K => ("k", dims.dim, dims.dim),
                LoraTarget::V => ("v", dims.dim, dims.dim),
                LoraTarget::O => ("o", dims.dim, dims.dim),
                LoraTarget::Fc1 => ("fc1", dims.hidden, dims.dim),
                LoraTarget::Fc2 => ("fc2", dims.dim, dims.hidden),
            };
            let scope = scope.pp("lora").pp(name);
            Ok(Change {
                target,
                down: scope.pp("down").param("weight", (cfg.rank, input), Init::KaimingUniform)?,
                up: scope.pp("up").param("weight", (output, cfg.rank), Init::Const(0.0))?,
            })
        };
        Ok(Self {
            changes: cfg.targets.iter().map(change).collect::<Result<_>>()?,
            factor: cfg.alpha.unwrap_or(cfg.rank as f64) / cfg.rank as f64,
            width: dims.dim,
        })
    }

    pub(super) fn detached(&self) -> Self {
        let detached = |change: &Change| Change {
            down: change.down.detach(),
            up: change.up.detach(),
            ..*change
        };
        Self { changes: self.changes.iter().map(detached).collect(), ..*self }
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.changes.iter().flat_map(|change| [&change.down, &change.up]).collect()
    }

    pub(super) fn apply(&self, layer: Layer, (weight, bias): Pair) -> Result<Pair> {
        let targets: &[LoraTarget] = match layer {
            Layer::Qkv => &[LoraTarget::Q, LoraTarget::K, LoraTarget::V],
            Layer::Proj => &[LoraTarget::O],
            Layer::Fc1 => &[LoraTarget::Fc1],
            Layer::Fc2 => &[LoraTarget::Fc2],
            Layer::Norm1 | Layer::Norm2 => &[],
        };
        let found: Vec<_> = targets
            .iter()
            .map(|target| self.changes.iter().find(|change| change.target == *target))
            .collect();
        if found.iter().all(Option::is_none) {
            return Ok((weight, bias));
        }
        // Queries, keys and values lie below one another; those that do not change get zeros.
        let change = |change: &Option<&Change>| match change {
            Some(change) => change.up.matmul(&change.down)? * self.factor,
            None => weight.narrow(0, 0, self.width)?.zeros_like(),
        };
        let changes = found.iter().map(change).collect::<Result<Vec<_>>>()?;
        Ok(((weight + Tensor::cat(&changes, 0)?)?, bias))
    }
}
