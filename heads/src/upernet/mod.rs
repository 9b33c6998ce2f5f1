//! UPerNet (Xiao et al., *Unified Perceptual Parsing for Scene Understanding*, ECCV 2018, arXiv 1807.10221), exactly as
//! mmsegmentation builds it, with its FCN auxiliary head, on \[DyT\]'s dense pyramid.

mod conv_module;
mod decode_head;
mod fcn;
mod ppm;

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::backbone::pyramid::DytPyramid;
use rescatter::head::{FeatureSpec, StepContext};
use rescatter::params::Scope;
use serde::{Deserialize, Serialize};

pub use conv_module::ConvModule;
pub use decode_head::{DecodeHead, DecodeShape};
pub use fcn::FcnHead;
pub use ppm::PyramidPooling;

use crate::Labels;
use crate::segmentation_loss::SegmentationLossConfig;

/// The section `head.upernet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UperNetConfig {
    /// The blocks (from 0) whose tokens become the four levels, fine to coarse.
    pub taps: Vec<usize>,
    /// How maps of one size become four levels.
    pub pyramid: PyramidConfig,
    /// Channels of every hidden map.
    pub channels: usize,
    /// Grids of the pyramid pooling.
    pub pool_scales: Vec<usize>,
    /// Probability with which a channel is dropped before the last convolution.
    pub dropout: f64,
    /// The auxiliary head on the third level; `null` for none.
    pub aux: Option<AuxConfig>,
    /// What is minimised.
    pub loss: SegmentationLossConfig,
}

impl Default for UperNetConfig {
    fn default() -> Self {
        Self {
            taps: vec![3, 5, 7, 11],
            pyramid: PyramidConfig::Dyt,
            channels: 512,
            pool_scales: vec![1, 2, 3, 6],
            dropout: 0.1,
            aux: Some(AuxConfig::default()),
            loss: SegmentationLossConfig::default(),
        }
    }
}

/// How maps of one size become levels of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PyramidConfig {
    /// Strides ¼, ½, 1 and 2 of the patch size by transposed convolutions and pooling (\[DyT\]'s and BEiT's dense setting).
    Dyt,
}

/// The section `head.upernet.aux`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuxConfig {
    /// Channels of its hidden map.
    pub channels: usize,
    /// Factor on its loss.
    pub weight: f64,
}

impl Default for AuxConfig {
    fn default() -> Self {
        Self { channels: 256, weight: 0.4 }
    }
}

/// The third level is what mmsegmentation's recipes put the auxiliary head on.
const AUX_LEVEL: usize = 2;

/// The pyramid, the decode head and, for training, the auxiliary head.
#[derive(Debug)]
pub struct UperNet {
    pyramid: DytPyramid,
    decode_head: DecodeHead,
    auxiliary_head: Option<FcnHead>,
}

impl UperNet {
    /// With the names of an mmsegmentation checkpoint below `root`.
    ///
    /// # Errors
    /// If there are not four taps, or the scope holds one of the parameters with another shape.
    pub fn new(
        config: &UperNetConfig,
        spec: &FeatureSpec,
        labels: Labels,
        root: &Scope,
    ) -> Result<Self> {
        if config.taps.len() != 4 {
            bail!("`upernet` needs four taps, got {}", config.taps.len());
        }
        let input = [spec.channels; 4];
        let shape = DecodeShape {
            input: &input,
            channels: config.channels,
            pool_scales: &config.pool_scales,
            dropout: config.dropout,
            classes: labels.classes,
        };
        let auxiliary_head = config.aux.as_ref().map(|aux| {
            let channels = (input[AUX_LEVEL], aux.channels, labels.classes);
            FcnHead::new(channels, config.dropout, &root.pp("auxiliary_head"))
        });
        Ok(Self {
            pyramid: DytPyramid::new(spec.channels, &root.pp("backbone"))?,
            decode_head: DecodeHead::new(&shape, &root.pp("decode_head"))?,
            auxiliary_head: auxiliary_head.transpose()?,
        })
    }

    /// Logits `[B, K, 4h, 4w]` on the finest level, and with a training context those of the auxiliary head `[B, K, h, w]`.
    ///
    /// # Errors
    /// If the features do not have four maps.
    pub fn forward(
        &self,
        features: &Features,
        ctx: Option<&StepContext>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let [a, b, c, d] = features.maps.as_slice() else {
            bail!("`upernet` needs four maps, got {}", features.maps.len())
        };
        let levels = self.pyramid.levels(&[a.clone(), b.clone(), c.clone(), d.clone()])?;
        let auxiliary = match (&self.auxiliary_head, ctx) {
            (Some(head), Some(_)) => Some(head.forward(&levels[AUX_LEVEL].map()?, ctx)?),
            _ => None,
        };
        Ok((self.decode_head.forward(&levels, ctx)?, auxiliary))
    }
}
