//! Reparametrisations: methods whose trained values amount to other weights of the same layers. A block asks for the
//! effective weights once per pass, and its branches run on them as on any; written to a file they are the merged model.

use candle_core::{Result, Tensor};

use super::{Ia3, Lora, Rlrr, Ssf};
use crate::backbone::Dims;
use crate::config::TuningConfig;
use crate::params::Scope;

/// Weight and bias.
pub type Pair = (Tensor, Tensor);

/// A layer of a block that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// The norm before the attention.
    Norm1,
    /// Queries, keys and values, one below the other.
    Qkv,
    /// The attention's output.
    Proj,
    /// The norm before the MLP.
    Norm2,
    /// The first layer of the MLP.
    Fc1,
    /// The second layer of the MLP.
    Fc2,
}

/// Their effect on one block, in this order.
#[derive(Debug, Clone)]
pub(super) struct BlockWeights {
    lora: Option<Lora>,
    rlrr: Option<Rlrr>,
    ssf: Option<Ssf>,
    ia3: Option<Ia3>,
}

impl BlockWeights {
    /// The vectors below `scope` (`blocks.i`).
    pub(super) fn new(cfg: &TuningConfig, dims: &Dims, scope: &Scope) -> Result<Self> {
        Ok(Self {
            lora: cfg.lora.as_ref().map(|cfg| Lora::new(cfg, dims, scope)).transpose()?,
            rlrr: cfg.rlrr.map(|cfg| Rlrr::new(cfg, dims, scope)).transpose()?,
            ssf: cfg.ssf.map(|_| Ssf::new(dims, scope)).transpose()?,
            ia3: cfg.ia3.map(|_| Ia3::new(dims, scope)).transpose()?,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            lora: self.lora.as_ref().map(Lora::detached),
            rlrr: self.rlrr.as_ref().map(Rlrr::detached),
            ssf: self.ssf.as_ref().map(Ssf::detached),
            ia3: self.ia3.as_ref().map(Ia3::detached),
        }
    }

    /// What the layer computes with.
    pub(super) fn effective(&self, layer: Layer, pair: &Pair) -> Result<Pair> {
        let mut pair = pair.clone();
        if let Some(lora) = &self.lora {
            pair = lora.apply(layer, pair)?;
        }
        if let Some(rlrr) = &self.rlrr {
            pair = rlrr.apply(layer, pair)?;
        }
        if let Some(ssf) = &self.ssf {
            pair = ssf.apply(layer, pair)?;
        }
        if let Some(ia3) = &self.ia3 {
            pair = ia3.apply(layer, pair)?;
        }
        Ok(pair)
    }

    /// All vectors.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let mut all = Vec::new();
        all.extend(self.lora.iter().flat_map(Lora::tensors));
        all.extend(self.rlrr.iter().flat_map(Rlrr::tensors));
        all.extend(self.ssf.iter().flat_map(Ssf::tensors));
        all.extend(self.ia3.iter().flat_map(Ia3::tensors));
        all
    }
}
