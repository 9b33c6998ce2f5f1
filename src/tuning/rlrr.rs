//! Residual low-rank rescaling (Low-Rank Rescaled ViT Fine-Tuning, CVPR 2024, arXiv 2403.19067):
//! W' = W + W ∘ (scale_line · scale_col), b' = b + shift_bias, with scale and shift after the norms.

use candle_core::{Result, Tensor};

use super::ssf::{ScaleShift, Start};
use super::weights::{Layer, Pair};
use crate::backbone::Dims;
use crate::config::{RlrrConfig, RlrrInit};
use crate::ops;
use crate::params::{Init, Scope};

/// `rlrr.{q,k,v,proj,fc1,fc2}` and `ssf1`, `ssf2` of a block.
#[derive(Debug, Clone)]
pub(super) struct Rlrr {
    qkv: [Rescale; 3],
    proj: Rescale,
    fc1: Rescale,
    fc2: Rescale,
    norms: [ScaleShift; 2],
}

/// The vectors of one weight.
#[derive(Debug, Clone)]
struct Rescale {
    /// `[out, 1]`.
    line: Tensor,
    /// `[1, in]`.
    column: Tensor,
    /// `[1, out]`.
    shift: Tensor,
}

impl Rescale {
    fn new(output: usize, input: usize, init: RlrrInit, scope: &Scope) -> Result<Self> {
        // torch's `kaiming_uniform_`, ±sqrt(6 / fan in), where the fan in of `[out, 1]` is 1.
        let line = match init {
            RlrrInit::Kaiming => Init::Uniform(6f64.sqrt()),
            RlrrInit::Zero => Init::Const(0.0),
        };
        let column = Init::Uniform((6.0 / input as f64).sqrt());
        Ok(Self {
            line: scope.param("scale_line", (output, 1), line)?,
            column: scope.param("scale_col", (1, input), column)?,
            shift: scope.param("shift_bias", (1, output), Init::Const(0.0))?,
        })
    }

    fn detached(&self) -> Self {
        Self { line: self.line.detach(), column: self.column.detach(), shift: self.shift.detach() }
    }

    fn tensors(&self) -> [&Tensor; 3] {
        [&self.line, &self.column, &self.shift]
    }
}

/// A weight whose equal parts are rescaled by `parts`.
fn rescaled(parts: &[Rescale], (weight, bias): Pair) -> Result<Pair> {
    let all = |tensor: fn(&Rescale) -> Result<Tensor>| {
        Tensor::cat(&parts.iter().map(tensor).collect::<Result<Vec<_>>>()?, 0)
    };
    let line = all(|part| part.line.flatten_all())?;
    let columns = all(|part| Ok(part.column.clone()))?;
    let shift = all(|part| part.shift.flatten_all())?;
    Ok((ops::rescale(&weight, &line, &columns)?, (bias + shift)?))
}

impl Rlrr {
    /// Below `scope` (`blocks.i`).
    pub(super) fn new(cfg: RlrrConfig, dims: &Dims, scope: &Scope) -> Result<Self> {
        let rescale = |name: &str, output: usize, input: usize| {
            Rescale::new(output, input, cfg.init, &scope.pp("rlrr").pp(name))
        };
        let norm = |name: &str| ScaleShift::new(dims.dim, start(cfg), &scope.pp(name));
        let (dim, hidden) = (dims.dim, dims.hidden);
        Ok(Self {
            qkv: [rescale("q", dim, dim)?, rescale("k", dim, dim)?, rescale("v", dim, dim)?],
            proj: rescale("proj", dim, dim)?,
            fc1: rescale("fc1", hidden, dim)?,
            fc2: rescale("fc2", dim, hidden)?,
            norms: [norm("ssf1")?, norm("ssf2")?],
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            qkv: self.qkv.each_ref().map(Rescale::detached),
            proj: self.proj.detached(),
            fc1: self.fc1.detached(),
            fc2: self.fc2.detached(),
            norms: self.norms.each_ref().map(ScaleShift::detached),
        }
    }

    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let others = [&self.proj, &self.fc1, &self.fc2];
        let rescales = self.qkv.iter().chain(others).flat_map(Rescale::tensors);
        rescales.chain(self.norms.iter().flat_map(ScaleShift::tensors)).collect()
    }

    pub(super) fn apply(&self, layer: Layer, pair: Pair) -> Result<Pair> {
        match layer {
            Layer::Norm1 => self.norms[0].apply(pair),
            Layer::Norm2 => self.norms[1].apply(pair),
            Layer::Qkv => rescaled(&self.qkv, pair),
            Layer::Proj => rescaled(std::slice::from_ref(&self.proj), pair),
            Layer::Fc1 => rescaled(std::slice::from_ref(&self.fc1), pair),
            Layer::Fc2 => rescaled(std::slice::from_ref(&self.fc2), pair),
        }
    }
}

/// How scales and shifts start beside it.
pub(super) fn start(cfg: RlrrConfig) -> Start {
    match cfg.init {
        RlrrInit::Kaiming => Start::Near,
        RlrrInit::Zero => Start::Exact,
    }
}
