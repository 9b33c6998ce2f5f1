//! Scaling and shifting features (Lian et al., NeurIPS 2022, arXiv 2210.08823): y ∘ scale + shift after every layer.

use candle_core::{Result, Tensor};

use super::weights::{Layer, Pair};
use crate::backbone::Dims;
use crate::params::{Init, Scope};

/// How scale and shift start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Near 1 and 0, as published.
    Near,
    /// At 1 and 0.
    Exact,
}

/// One scale and shift, both `[out]`.
#[derive(Debug, Clone)]
pub(super) struct ScaleShift {
    scale: Tensor,
    shift: Tensor,
}

impl ScaleShift {
    pub(super) fn new(width: usize, start: Start, scope: &Scope) -> Result<Self> {
        let (scale, shift) = match start {
            Start::Near => (Init::NormalAround(1.0, 0.02), Init::Normal(0.02)),
            Start::Exact => (Init::Const(1.0), Init::Const(0.0)),
        };
        Ok(Self {
            scale: scope.param("scale", width, scale)?,
            shift: scope.param("shift", width, shift)?,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { scale: self.scale.detach(), shift: self.shift.detach() }
    }

    pub(super) fn tensors(&self) -> [&Tensor; 2] {
        [&self.scale, &self.shift]
    }

    /// The same layer with scale and shift after it; its weight is `[out, …]`.
    pub(super) fn apply(&self, (weight, bias): Pair) -> Result<Pair> {
        let bias = ((bias * &self.scale)? + &self.shift)?;
        Ok((scaled_rows(&weight, &self.scale)?, bias))
    }
}

/// Row i of `[out, …]` times scale\[i\].
pub(super) fn scaled_rows(weight: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; weight.rank()];
    shape[0] = scale.elem_count();
    weight.broadcast_mul(&scale.reshape(shape)?)
}

/// Those of a block: `ssf_norm1`, `ssf_qkv`, `ssf_proj`, `ssf_norm2`, `ssf_fc1`, `ssf_fc2`.
#[derive(Debug, Clone)]
pub(super) struct Ssf {
    layers: [(Layer, ScaleShift); 6],
}

impl Ssf {
    /// Below `scope` (`blocks.i`).
    pub(super) fn new(dims: &Dims, scope: &Scope) -> Result<Self> {
        let layer = |layer: Layer, name: &str, width: usize| -> Result<_> {
            Ok((layer, ScaleShift::new(width, Start::Near, &scope.pp(format!("ssf_{name}")))?))
        };
        Ok(Self {
            layers: [
                layer(Layer::Norm1, "norm1", dims.dim)?,
                layer(Layer::Qkv, "qkv", 3 * dims.dim)?,
                layer(Layer::Proj, "proj", dims.dim)?,
                layer(Layer::Norm2, "norm2", dims.dim)?,
                layer(Layer::Fc1, "fc1", dims.hidden)?,
                layer(Layer::Fc2, "fc2", dims.dim)?,
            ],
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { layers: self.layers.clone().map(|(layer, ssf)| (layer, ssf.detached())) }
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        self.layers.iter().flat_map(|(_, ssf)| ssf.tensors()).collect()
    }

    pub(super) fn apply(&self, layer: Layer, pair: Pair) -> Result<Pair> {
        match self.layers.iter().find(|(own, _)| *own == layer) {
            Some((_, ssf)) => ssf.apply(pair),
            None => Ok(pair),
        }
    }
}
