//! mmsegmentation's `UPerHead`.

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::pyramid::Level;
use rescatter::head::StepContext;
use rescatter::params::Scope;

use super::{ConvModule, PyramidPooling};
use crate::pixel_classifier::{Dropout2d, PixelClassifier};

/// What the decode head is made of.
#[derive(Debug, Clone)]
pub struct DecodeShape<'a> {
    /// Channels of the levels, fine to coarse.
    pub input: &'a [usize],
    /// Channels of every hidden map.
    pub channels: usize,
    /// Grids of the pyramid pooling.
    pub pool_scales: &'a [usize],
    /// Probability with which a channel is dropped before the last convolution.
    pub dropout: f64,
    /// K.
    pub classes: usize,
}

/// Pyramid pooling on the coarsest level, a feature pyramid over all, one fused map, one score per class.
#[derive(Debug)]
pub struct DecodeHead {
    ppm: PyramidPooling,
    bottleneck: ConvModule,
    lateral_convs: Vec<ConvModule>,
    fpn_convs: Vec<ConvModule>,
    fpn_bottleneck: ConvModule,
    classifier: PixelClassifier,
}

impl DecodeHead {
    /// With mmsegmentation's names below `scope` (that of `decode_head`).
    ///
    /// # Errors
    /// If there are fewer than two levels, or the scope holds one of the parameters with another shape.
    pub fn new(shape: &DecodeShape, scope: &Scope) -> Result<Self> {
        let &[ref finer @ .., top] = shape.input else { bail!("`upernet` needs levels, got none") };
        if finer.is_empty() {
            bail!("`upernet` needs at least two levels, got 1");
        }
        let c = shape.channels;
        let each = |name: &str, kernel: usize, input: &dyn Fn(usize) -> usize| -> Result<Vec<_>> {
            let scope = scope.pp(name);
            (0..finer.len()).map(|i| ConvModule::new((input(i), c), kernel, &scope.pp(i))).collect()
        };
        Ok(Self {
            ppm: PyramidPooling::new(shape.pool_scales, (top, c), &scope.pp("psp_modules"))?,
            bottleneck: ConvModule::new(
                (top + shape.pool_scales.len() * c, c),
                3,
                &scope.pp("bottleneck"),
            )?,
            lateral_convs: each("lateral_convs", 1, &|i| finer[i])?,
            fpn_convs: each("fpn_convs", 3, &|_| c)?,
            fpn_bottleneck: ConvModule::new(
                (shape.input.len() * c, c),
                3,
                &scope.pp("fpn_bottleneck"),
            )?,
            classifier: PixelClassifier::new(
                (c, shape.classes),
                Dropout2d::decode(shape.dropout),
                scope,
            )?,
        })
    }

    /// `levels`: `[B, Cᵢ, hᵢ, wᵢ]`, fine to coarse → logits `[B, K, h₀, w₀]`.
    ///
    /// # Errors
    /// If the number of levels or their channels differ from those of the construction.
    pub fn forward(&self, levels: &[Level], ctx: Option<&StepContext>) -> Result<Tensor> {
        let outputs = self.outputs(levels, ctx)?;
        let fused = self.fpn_bottleneck.forward_joined(&outputs, size_of(&outputs[0])?, ctx)?;
        self.classifier.forward(&fused, ctx)
    }

    /// The levels of the feature pyramid, each at its own size.
    fn outputs(&self, levels: &[Level], ctx: Option<&StepContext>) -> Result<Vec<Tensor>> {
        let Some((top, finer)) = levels.split_last() else { bail!("`upernet` got no level") };
        if finer.len() != self.lateral_convs.len() {
            bail!(
                "`upernet` was built for {} levels, got {}",
                self.lateral_convs.len() + 1,
                levels.len()
            );
        }
        let top = top.map()?;
        let mut context = vec![top.clone()];
        context.extend(self.ppm.forward(&top, ctx)?);
        let mut lateral = self.bottleneck.forward_joined(&context, size_of(&top)?, ctx)?;
        let mut outputs = vec![lateral.clone()];
        for (i, level) in finer.iter().enumerate().rev() {
            lateral = self.lateral_convs[i].forward_lateral(level, &lateral, ctx)?;
            outputs.push(self.fpn_convs[i].forward(&lateral, ctx)?);
        }
        outputs.reverse();
        Ok(outputs)
    }
}

fn size_of(map: &Tensor) -> Result<(usize, usize)> {
    let (_, _, h, w) = map.dims4()?;
    Ok((h, w))
}
