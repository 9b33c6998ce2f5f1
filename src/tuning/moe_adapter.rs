//! Adapters merged per image (\[DyT\] Eq. 7).

use candle_core::{Result, Tensor};

use super::adapter::dropped;
use crate::backbone::detached;
use crate::config::AdapterConfig;
use crate::ops;
use crate::params::{Init, Scope};
use crate::rng::Stream;

/// N adapters whose weights are averaged by α = softmax(router(mean of all tokens)): one adapter's cost per token.
#[derive(Debug, Clone)]
pub struct MoeAdapter {
    down: (Tensor, Tensor),
    up: (Tensor, Tensor),
    router: Tensor,
    scale: f64,
    dropout: f64,
}

impl MoeAdapter {
    /// `down_proj`, `up_proj` (stacked over the experts) and `router` below `scope`; it starts as zero.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &AdapterConfig, dim: usize, scope: &Scope) -> Result<Self> {
        let stack =
            |name: &str, output: usize, input: usize, init: Init| -> Result<(Tensor, Tensor)> {
                let scope = scope.pp(name);
                let weight = scope.param("weight", (cfg.experts, output, input), init)?;
                Ok((weight, scope.param("bias", (cfg.experts, output), Init::Const(0.0))?))
            };
        // Each expert starts as a plain adapter would: its fan-in is the token's width alone.
        let down = Init::Uniform(1.0 / (dim as f64).sqrt());
        Ok(Self {
            down: stack("down_proj", cfg.bottleneck, dim, down)?,
            up: stack("up_proj", dim, cfg.bottleneck, Init::Const(0.0))?,
            router: scope.pp("router").param(
                "weight",
                (cfg.experts, dim),
                Init::TruncatedNormal(0.02),
            )?,
            scale: cfg.scale,
            dropout: cfg.dropout,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            down: detached(&self.down),
            up: detached(&self.up),
            router: self.router.detach(),
            ..*self
        }
    }

    /// `x`: `[B, N, C]` → `[B, N, C]`; one dropout stream per image, none outside training.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn forward(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Tensor> {
        let alpha = ops::softmax(&ops::linear(&x.mean(1)?, &self.router, None)?)?; // [B, experts]
        let (weight, bias) = merged(&self.down, &alpha)?;
        let hidden = x.matmul(&weight.transpose(1, 2)?)?.broadcast_add(&bias)?.relu()?; // [B, N, d]
        let hidden = dropped(hidden, self.dropout, streams)?;
        let (weight, bias) = merged(&self.up, &alpha)?;
        hidden.matmul(&weight.transpose(1, 2)?)?.broadcast_add(&bias)? * self.scale
    }
}

/// \[DyT\] Eq. 7: W = Σ αᵢ Wᵢ per image, `[B, out, in]`, and the biases alike, `[B, 1, out]`.
fn merged((weight, bias): &(Tensor, Tensor), alpha: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, output, input) = weight.dims3()?;
    let weight = alpha.matmul(&weight.flatten_from(1)?)?.reshape(((), output, input))?;
    Ok((weight, alpha.matmul(bias)?.unsqueeze(1)?))
}
