//! (IA)³ (Liu et al., NeurIPS 2022, arXiv 2205.05638): factors on keys, values and the hidden layer of the MLP.

use candle_core::{Result, Tensor};

use super::ssf::scaled_rows;
use super::weights::{Layer, Pair};
use crate::backbone::Dims;
use crate::params::{Init, Scope};

/// `ia3.{k,v}` `[C]` and `ia3.fc1` `[hidden]`, which acts after the GELU; all start at 1.
#[derive(Debug, Clone)]
pub(super) struct Ia3 {
    k: Tensor,
    v: Tensor,
    fc1: Tensor,
}

impl Ia3 {
    /// Below `scope` (`blocks.i`).
    pub(super) fn new(dims: &Dims, scope: &Scope) -> Result<Self> {
        let factor =
            |name: &str, width: usize| scope.pp("ia3").param(name, width, Init::Const(1.0));
        Ok(Self {
            k: factor("k", dims.dim)?,
            v: factor("v", dims.dim)?,
            fc1: factor("fc1", dims.hidden)?,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { k: self.k.detach(), v: self.v.detach(), fc1: self.fc1.detach() }
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        vec![&self.k, &self.v, &self.fc1]
    }

    pub(super) fn apply(&self, layer: Layer, (weight, bias): Pair) -> Result<Pair> {
        Ok(match layer {
            Layer::Qkv => {
                let rows = Tensor::cat(&[&self.k.ones_like()?, &self.k, &self.v], 0)?;
                (scaled_rows(&weight, &rows)?, (bias * rows)?)
            }
            Layer::Fc2 => (weight.broadcast_mul(&self.fc1.unsqueeze(0)?)?, bias),
            _ => (weight, bias),
        })
    }
}
