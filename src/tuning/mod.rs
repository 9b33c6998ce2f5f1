//! What is trained: the parts that tuning methods add to a frozen backbone.
//!
//! A method plugs into [`BlockTuning`], which a block owns and asks at the place where the method acts: the adapter
//! acts beside the MLP, the one over time before the attention. A method that acts elsewhere becomes a further field and a further call in `backbone::block`.

use candle_core::{Result, Tensor};

use crate::backbone::TokenGrid;
use crate::config::TuningConfig;
use crate::params::Scope;
use crate::rng::Stream;

mod adapter;
mod moe_adapter;
mod st_adapter;

pub use adapter::Adapter;
pub use moe_adapter::MoeAdapter;
pub use st_adapter::StAdapter;

/// What the tuning methods add to one block.
#[derive(Debug, Clone)]
pub struct BlockTuning {
    adaptmlp: Option<AnyAdapter>,
    adaptst: Option<StAdapter>,
}

#[derive(Debug, Clone)]
enum AnyAdapter {
    One(Adapter),
    Experts(MoeAdapter),
}

impl BlockTuning {
    /// The parts below `scope` (`blocks.i`, trainable) for tokens of width `dim`.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &TuningConfig, dim: usize, scope: &Scope) -> Result<Self> {
        let adapter = |name: &str| match cfg.adapter {
            None => Ok(None),
            Some(cfg) if cfg.experts > 1 => {
                Ok(Some(AnyAdapter::Experts(MoeAdapter::new(&cfg, dim, &scope.pp(name))?)))
            }
            Some(cfg) => Ok::<_, candle_core::Error>(Some(AnyAdapter::One(Adapter::new(
                &cfg,
                dim,
                &scope.pp(name),
            )?))),
        };
        let over_time = |cfg| StAdapter::new(cfg, dim, &scope.pp("adaptst"));
        let adaptst = cfg.st_adapter.as_ref().map(over_time).transpose()?;
        Ok(Self { adaptmlp: adapter("adaptmlp")?, adaptst })
    }

    /// The same parts without gradients, sharing their storage.
    pub(crate) fn detached(&self) -> Self {
        let adaptmlp = self.adaptmlp.as_ref().map(|adapter| match adapter {
            AnyAdapter::One(adapter) => AnyAdapter::One(adapter.detached()),
            AnyAdapter::Experts(adapter) => AnyAdapter::Experts(adapter.detached()),
        });
        Self { adaptmlp, adaptst: self.adaptst.as_ref().map(StAdapter::detached) }
    }

    /// What is added to the block's input from the frames before and after, `[B·T, N, C]`.
    ///
    /// # Errors
    /// If `x` does not lie on `places`.
    pub fn adapt_time(&self, x: &Tensor, places: TokenGrid) -> Result<Option<Tensor>> {
        self.adaptst.as_ref().map(|adapter| adapter.forward(x, places)).transpose()
    }

    /// What is added beside the MLP: A(x) of every token, `[B, N, C]`. Dropout draws from `streams`, one per image; none
    /// outside training.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn adapt_mlp(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Option<Tensor>> {
        match &self.adaptmlp {
            None => Ok(None),
            Some(AnyAdapter::One(adapter)) => adapter.forward(x, streams).map(Some),
            Some(AnyAdapter::Experts(adapter)) => adapter.forward(x, streams).map(Some),
        }
    }
}
