//! Visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119): learned tokens beside those of the image.

use candle_core::{Result, Tensor};

use crate::backbone::Dims;
use crate::config::VptConfig;
use crate::params::{Init, Scope};

/// The prompts of one layer, `prompts.i` `[m, C]`; they lie behind the class and register tokens.
#[derive(Debug, Clone)]
pub(crate) struct Prompts {
    rows: Tensor,
    /// Tokens before them.
    first: usize,
}

impl Prompts {
    /// Those of layer `index` below `scope` (the backbone); nothing where the layer gets none of its own.
    pub(super) fn new(
        cfg: VptConfig,
        dims: &Dims,
        index: usize,
        scope: &Scope,
    ) -> Result<Option<Self>> {
        if index > 0 && !cfg.deep {
            return Ok(None);
        }
        let bound = (6.0 / (3 * dims.patch * dims.patch + dims.dim) as f64).sqrt();
        let rows = scope.pp("prompts").param(
            &index.to_string(),
            (cfg.tokens, dims.dim),
            Init::Uniform(bound),
        )?;
        Ok(Some(Self { rows, first: dims.prefix() }))
    }

    pub(super) fn detached(&self) -> Self {
        Self { rows: self.rows.detach(), ..*self }
    }

    /// `[B, prefix + P, C]` → `[B, prefix + m + P, C]`.
    pub(crate) fn inserted(&self, x: &Tensor) -> Result<Tensor> {
        self.between(x, self.first)
    }

    /// The same tokens with these prompts in place of those that the layer before left.
    pub(super) fn replaced(&self, x: &Tensor) -> Result<Tensor> {
        self.between(x, self.first + self.rows.dim(0)?)
    }

    /// The tokens before the prompts, the prompts, and the tokens of `x` from number `next`.
    fn between(&self, x: &Tensor, next: usize) -> Result<Tensor> {
        let (batch, tokens, dim) = x.dims3()?;
        let rows = self.rows.unsqueeze(0)?.broadcast_as((batch, self.rows.dim(0)?, dim))?;
        let rest = x.narrow(1, next, tokens - next)?;
        if self.first == 0 {
            return Tensor::cat(&[&rows, &rest], 1);
        }
        Tensor::cat(&[&x.narrow(1, 0, self.first)?, &rows, &rest], 1)
    }
}
