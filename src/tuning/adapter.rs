//! The bottleneck adapter of AdaptFormer (arXiv 2205.13535) as \[DyT\] Eq. 1 uses it.

use candle_core::{Result, Tensor};

use crate::backbone::detached;
use crate::config::AdapterConfig;
use crate::ops::{self, Bottleneck};
use crate::params::{Init, Scope};
use crate::rng::Stream;

/// A(x) = s · Up(ReLU(Down(x))), with dropout before `Up` as in the released code.
#[derive(Debug, Clone)]
pub struct Adapter {
    down: (Tensor, Tensor),
    up: (Tensor, Tensor),
    scale: f64,
    dropout: f64,
}

impl Adapter {
    /// `down_proj` and `up_proj` below `scope`; it starts as zero.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &AdapterConfig, dim: usize, scope: &Scope) -> Result<Self> {
        let linear =
            |name: &str, output: usize, input: usize, init: Init| -> Result<(Tensor, Tensor)> {
                let scope = scope.pp(name);
                Ok((
                    scope.param("weight", (output, input), init)?,
                    scope.param("bias", output, Init::Const(0.0))?,
                ))
            };
        Ok(Self {
            down: linear("down_proj", cfg.bottleneck, dim, Init::KaimingUniform)?,
            up: linear("up_proj", dim, cfg.bottleneck, Init::Const(0.0))?,
            scale: cfg.scale,
            dropout: cfg.dropout,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { down: detached(&self.down), up: detached(&self.up), ..*self }
    }

    /// `x`: `[B, N, C]` → `[B, N, C]`; one dropout stream per image, none outside training.
    ///
    /// # Errors
    /// If the width of `x` is another one.
    pub fn forward(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Tensor> {
        self.drawn(x, streams)?.forward(x)
    }

    /// The arithmetic of one pass over `x` `[B, N, C]`, with dropout drawn from `streams` as in [`Adapter::forward`].
    pub(super) fn drawn(&self, x: &Tensor, streams: &mut [Stream]) -> Result<Bottleneck> {
        let (batch, tokens, _) = x.dims3()?;
        let shape = (batch, tokens, self.down.1.elem_count());
        let factors = if drops(self.dropout, streams) {
            let ones = Tensor::ones(shape, x.dtype(), x.device())?;
            Some(ops::dropout(&ones, self.dropout, streams)?)
        } else {
            None
        };
        let (down, up) = (self.down.clone(), self.up.clone());
        Ok(Bottleneck { down, up, scale: self.scale, factors })
    }
}

/// Dropout while training, the identity otherwise.
pub(super) fn dropped(x: Tensor, p: f64, streams: &mut [Stream]) -> Result<Tensor> {
    if drops(p, streams) { ops::dropout(&x, p, streams) } else { Ok(x) }
}

/// There are streams while training alone.
fn drops(p: f64, streams: &[Stream]) -> bool {
    p != 0.0 && !streams.is_empty()
}
