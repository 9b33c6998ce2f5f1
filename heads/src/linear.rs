//! The linear head of DINOv2's segmentation protocol (Oquab et al., arXiv 2304.07193, §7.4; mmsegmentation's `BNHead`):
//! batch norm and a 1×1 convolution on one tapped map or several.

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::head::{FeatureSpec, StepContext};
use rescatter::ops::{BatchNorm, NormMode};
use rescatter::params::Scope;
use serde::{Deserialize, Serialize};

use crate::Labels;
use crate::pixel_classifier::{Dropout2d, PixelClassifier};
use crate::segmentation_loss::SegmentationLossConfig;

/// The section `head.linear`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinearConfig {
    /// The blocks (from 0) whose maps are concatenated; empty means the last one.
    pub taps: Vec<usize>,
    /// Probability with which a channel is dropped before the convolution.
    pub dropout: f64,
    /// What is minimised.
    pub loss: SegmentationLossConfig,
}

/// Batch norm (`decode_head.bn`) and one score per class (`decode_head.conv_seg`).
#[derive(Debug)]
pub struct LinearHead {
    bn: BatchNorm,
    classifier: PixelClassifier,
}

impl LinearHead {
    /// On the concatenation of all taps.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        config: &LinearConfig,
        spec: &FeatureSpec,
        labels: Labels,
        root: &Scope,
    ) -> Result<Self> {
        let input = spec.channels * config.taps.len().max(1);
        let scope = root.pp("decode_head");
        let classifier = PixelClassifier::new(
            (input, labels.classes),
            Dropout2d::decode(config.dropout),
            &scope,
        )?;
        Ok(Self { bn: BatchNorm::new(input, &scope.pp("bn"))?, classifier })
    }

    /// Logits `[B, K, h, w]`, one per patch.
    ///
    /// # Errors
    /// If the features have no map.
    pub fn forward(&self, features: &Features, ctx: Option<&StepContext>) -> Result<Tensor> {
        let map = match features.maps.as_slice() {
            [] => bail!("`linear` needs at least one map, got none"),
            [one] => one.clone(),
            several => Tensor::cat(several, 1)?,
        };
        self.classifier.forward(&self.bn.forward(&map, NormMode::of(ctx))?, ctx)
    }
}
