//! ST-Adapter (Pan et al., *ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning*, arXiv 2206.13559, §3.2): an
//! adapter whose bottleneck looks at the frames before and after.

use candle_core::{Result, Tensor, bail};

use crate::backbone::{TokenGrid, detached};
use crate::config::StAdapterConfig;
use crate::ops;
use crate::params::{Init, Scope};

/// A(x) = Up(ReLU(Conv(Down(x)))) on the patches; class and register tokens have no neighbours and get nothing.
///
/// The convolution starts as the identity and `Up` at zero, so that the model starts as it was without the adapter and
/// gradients reach both.
#[derive(Debug, Clone)]
pub struct StAdapter {
    down: (Tensor, Tensor),
    conv: (Tensor, Tensor),
    up: (Tensor, Tensor),
}

impl StAdapter {
    /// `down_proj`, `conv` (weight `[d, 1, t, h, w]`) and `up_proj` below `scope`.
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(cfg: &StAdapterConfig, dim: usize, scope: &Scope) -> Result<Self> {
        let width = cfg.bottleneck;
        let layer = |name: &str, shape: &[usize], init: Init| -> Result<(Tensor, Tensor)> {
            let scope = scope.pp(name);
            let bias = scope.param("bias", shape[0], Init::Const(0.0))?;
            Ok((scope.param("weight", shape, init)?, bias))
        };
        let [time, rows, columns] = cfg.kernel;
        Ok(Self {
            down: layer("down_proj", &[width, dim], Init::KaimingUniform)?,
            conv: layer("conv", &[width, 1, time, rows, columns], Init::Centre)?,
            up: layer("up_proj", &[dim, width], Init::Const(0.0))?,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self { down: detached(&self.down), conv: detached(&self.conv), up: detached(&self.up) }
    }

    /// `x`: `[B·T, prefix + P, C]` → `[B·T, prefix + P, C]`, zero for the prefix.
    ///
    /// # Errors
    /// If there are fewer tokens than places, or no whole clips.
    pub fn forward(&self, x: &Tensor, places: TokenGrid) -> Result<Tensor> {
        let (images, tokens, _) = x.dims3()?;
        let patches = places.grid.0 * places.grid.1;
        if tokens < patches || !images.is_multiple_of(places.frames.max(1)) {
            bail!("{images} × {tokens} tokens do not lie on {places:?}");
        }
        let prefix = tokens - patches;
        let hidden = ops::linear(&x.narrow(1, prefix, patches)?, &self.down.0, Some(&self.down.1))?;
        let hidden = ops::clip_conv(&hidden, &self.conv.0, &self.conv.1, places)?.relu()?;
        ops::linear(&hidden, &self.up.0, Some(&self.up.1))?.pad_with_zeros(1, prefix, 0)
    }
}
