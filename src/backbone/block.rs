//! One transformer block with its adapter and dispatcher (\[DyT\] Eq. 2 and Fig. 3).

use candle_core::{Result, Tensor};

use super::attention::{attention_branch, detached_attention};
use super::mlp::{detached_mlp, mlp_branch};
use super::{Dims, Pass, TokenGrid};
use crate::config::{DispatchConfig, Select, TuningConfig, Variant};
use crate::dispatch::{Active, Dispatcher, Selector};
use crate::ops::{self, AttentionBranch, MlpBranch};
use crate::params::Scope;
use crate::rng::{Purpose, Stream};
use crate::tuning::BlockTuning;

/// One transformer block.
pub(crate) struct Block {
    index: u16,
    attn: AttentionBranch,
    mlp: MlpBranch,
    tuning: BlockTuning,
    variant: Variant,
    dispatcher: Option<Dispatcher>,
    drop_path: f64,
}

impl Block {
    /// Block `index` at `scope` (`blocks.i`), whose role decides whether the pretrained weights are trained.
    pub(super) fn new(
        index: usize,
        dims: &Dims,
        dispatch: &DispatchConfig,
        tuning: &TuningConfig,
        scope: &Scope,
    ) -> Result<Self> {
        let added = scope.trainable();
        let select = match dispatch.variant {
            Variant::None => None,
            Variant::Mlp => Some("mlp_token_select"),
        };
        // A random dispatcher keeps the learned one's parameters, unused, so that a learned run can be evaluated at random.
        let scored = match dispatch.select {
            Select::Learned => added.clone(),
            Select::Random => added.frozen(),
        };
        Ok(Self {
            index: index as u16,
            attn: attention_branch(dims, index, scope)?,
            mlp: mlp_branch(dims, scope)?,
            tuning: BlockTuning::new(tuning, dims.dim, &added)?,
            variant: dispatch.variant,
            dispatcher: select
                .map(|name| Dispatcher::new(dims.dim, dispatch.initial_rate(), &scored.pp(name)))
                .transpose()?,
            drop_path: dims.drop_path * index as f64 / (dims.depth - 1).max(1) as f64,
        })
    }

    /// The same block without gradients for its weights, sharing their storage.
    pub(super) fn detached(&self) -> Self {
        Self {
            attn: detached_attention(&self.attn),
            mlp: detached_mlp(&self.mlp),
            tuning: self.tuning.detached(),
            dispatcher: self.dispatcher.as_ref().map(Dispatcher::detached),
            ..*self
        }
    }

    /// Tokens `[B, N, C]` before the block → after it; the patches among them lie on `places`. The variants of \[DyT\]
    /// Fig. 3 differ in what `selector` cuts.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        places: TokenGrid,
        selector: &mut Selector,
    ) -> Result<Tensor> {
        let x = &self.enter(x, places)?;
        match self.variant {
            Variant::None | Variant::Mlp => {
                self.feed(&self.attend(x, places.grid, selector.pass())?, selector)
            }
        }
    }

    /// What comes before the attention: `x + A(x)` of the adapter over time, where there is one.
    pub(crate) fn enter(&self, x: &Tensor, places: TokenGrid) -> Result<Tensor> {
        match self.tuning.adapt_time(x, places)? {
            Some(adapted) => x + adapted,
            None => Ok(x.clone()),
        }
    }

    /// The attention half: `x + Attn(x)`.
    pub(crate) fn attend(&self, x: &Tensor, grid: (usize, usize), pass: &Pass) -> Result<Tensor> {
        x + self.dropped(self.attn.forward(x, grid, None)?, 0, pass)?
    }

    /// The MLP half: `x + m·MLP(x) + A(x)`.
    pub(crate) fn feed(&self, x: &Tensor, selector: &mut Selector) -> Result<Tensor> {
        let active = match self.variant {
            Variant::None => Active::All,
            Variant::Mlp => selector.choose(self.dispatcher.as_ref(), x)?,
        };
        let adapted =
            self.tuning.adapt_mlp(x, &mut self.streams(Purpose::Dropout, 0, selector.pass()))?;
        let y = match active {
            Active::All => (x + self.dropped(self.mlp.forward(x, None)?, 1, selector.pass())?)?,
            Active::Masked(mask) => {
                (x + self.dropped(self.mlp.forward(x, Some(&mask))?, 1, selector.pass())?)?
            }
            Active::Rows(rows) => self.mlp.gathered(x, &rows)?,
        };
        match adapted {
            Some(adapted) => y + adapted,
            None => Ok(y),
        }
    }

    /// Stochastic depth on the branch `half` (0 attention, 1 MLP).
    fn dropped(&self, branch: Tensor, half: u16, pass: &Pass) -> Result<Tensor> {
        let mut streams = self.streams(Purpose::DropPath, half, pass);
        if self.drop_path == 0.0 || streams.is_empty() {
            return Ok(branch);
        }
        ops::drop_path(&branch, self.drop_path, &mut streams)
    }

    /// One stream per image while training, none otherwise.
    fn streams(&self, purpose: Purpose, half: u16, pass: &Pass) -> Vec<Stream> {
        match pass {
            Pass::Train(ctx) | Pass::Complete(ctx) if ctx.training => ctx
                .samples
                .iter()
                .map(|&sample| ctx.rng.stream(purpose, sample, 2 * self.index + half))
                .collect(),
            _ => Vec::new(),
        }
    }
}
