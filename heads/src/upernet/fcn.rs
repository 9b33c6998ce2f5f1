//! mmsegmentation's `FCNHead` with one convolution: the auxiliary head that only training needs.

use candle_core::{Result, Tensor};
use rescatter::head::StepContext;
use rescatter::params::Scope;

use super::ConvModule;
use crate::pixel_classifier::{Dropout2d, PixelClassifier};

/// A 3×3 convolution (`convs.0`) and one score per class (`conv_seg`).
#[derive(Debug)]
pub struct FcnHead {
    conv: ConvModule,
    classifier: PixelClassifier,
}

impl FcnHead {
    /// From `input` over `hidden` channels to `classes`; `scope` is that of `auxiliary_head`.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        (input, hidden, classes): (usize, usize, usize),
        dropout: f64,
        scope: &Scope,
    ) -> Result<Self> {
        let conv = ConvModule::new((input, hidden), 3, &scope.pp("convs").pp(0))?;
        let dropout = Dropout2d::auxiliary(dropout);
        Ok(Self { conv, classifier: PixelClassifier::new((hidden, classes), dropout, scope)? })
    }

    /// `map`: `[B, input, h, w]` → logits `[B, K, h, w]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, map: &Tensor, ctx: Option<&StepContext>) -> Result<Tensor> {
        self.classifier.forward(&self.conv.forward(map, ctx)?, ctx)
    }
}
