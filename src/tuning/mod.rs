//! What is trained: the parts that tuning methods add to a frozen backbone.
//!
//! A method plugs into [`BlockTuning`], which a block owns and asks at the place where the method acts: an adapter
//! acts beside each part of the block that is dispatched. A method that acts elsewhere becomes a further field and a further call in `backbone::block`.

use candle_core::{Result, Tensor};

use crate::config::{AdapterConfig, TuningConfig};
use crate::dispatch::Site;
use crate::params::Scope;
use crate::rng::Stream;

mod adapter;
mod moe_adapter;

pub use adapter::Adapter;
pub use moe_adapter::MoeAdapter;

/// What the tuning methods add to one block.
#[derive(Debug, Clone)]
pub struct BlockTuning {
    adapters: Vec<(Site, AnyAdapter)>,
}

#[derive(Debug, Clone)]
enum AnyAdapter {
    One(Adapter),
    Experts(MoeAdapter),
}

impl BlockTuning {
    /// The parts below `scope` (`blocks.i`, trainable) for tokens of width `dim`; adapters stand at `sites`.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &TuningConfig, sites: &[Site], dim: usize, scope: &Scope) -> Result<Self> {
        let adapter = |cfg: &AdapterConfig, site: Site| {
            let scope = scope.pp(format!("adapt{}", site.name()));
            let adapter = match cfg.experts {
                1 => AnyAdapter::One(Adapter::new(cfg, dim, &scope)?),
                _ => AnyAdapter::Experts(MoeAdapter::new(cfg, dim, &scope)?),
            };
            Ok::<_, candle_core::Error>((site, adapter))
        };
        let at_sites = |cfg| sites.iter().map(|&site| adapter(cfg, site)).collect();
        Ok(Self { adapters: cfg.adapter.as_ref().map_or_else(|| Ok(Vec::new()), at_sites)? })
    }

    /// The same parts without gradients, sharing their storage.
    pub(crate) fn detached(&self) -> Self {
        let detached = |adapter: &AnyAdapter| match adapter {
            AnyAdapter::One(adapter) => AnyAdapter::One(adapter.detached()),
            AnyAdapter::Experts(adapter) => AnyAdapter::Experts(adapter.detached()),
        };
        Self { adapters: self.adapters.iter().map(|(site, a)| (*site, detached(a))).collect() }
    }

    /// What is added beside `site`: A(x) of every token, `[B, N, C]`. Dropout draws from `streams(number)` of the block's
    /// adapter `number`, one stream per image; none outside training.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn adapt(
        &self,
        site: Site,
        x: &Tensor,
        streams: impl FnOnce(u16) -> Vec<Stream>,
    ) -> Result<Option<Tensor>> {
        let Some(number) = self.adapters.iter().position(|(at, _)| *at == site) else {
            return Ok(None);
        };
        let mut streams = streams(number as u16);
        match &self.adapters[number].1 {
            AnyAdapter::One(adapter) => adapter.forward(x, &mut streams).map(Some),
            AnyAdapter::Experts(adapter) => adapter.forward(x, &mut streams).map(Some),
        }
    }
}
