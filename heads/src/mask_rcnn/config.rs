//! The section `head.mask_rcnn`; every default is that of ViTDet's recipe in detectron2.

use rescatter::boxes::Decay;
use rescatter::{Error, Result};
use serde::{Deserialize, Serialize};

/// Levels of the pyramid, p2 … p6.
pub const LEVELS: usize = 5;

/// Most stages of a cascade.
pub const MAX_STAGES: usize = 5;

/// The section `head.mask_rcnn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskRcnnConfig {
    /// The block (from 0) whose map the pyramid is built on; `null`: the last one.
    pub tap: Option<usize>,
    /// Channels of every level of the pyramid.
    pub channels: usize,
    /// Boxes around which the first stage searches.
    pub anchors: AnchorConfig,
    /// The region proposal network.
    pub rpn: RpnConfig,
    /// Which regions the second stage is trained on, and how they are pooled.
    pub roi: RoiConfig,
    /// Classes and boxes of regions.
    pub box_head: BoxHeadConfig,
    /// Masks of regions; `null` for boxes alone.
    pub mask_head: Option<MaskHeadConfig>,
    /// Several box heads, each on the boxes of the one before; `null` for one.
    pub cascade: Option<CascadeConfig>,
    /// What comes out.
    pub detections: DetectionConfig,
}

impl Default for MaskRcnnConfig {
    fn default() -> Self {
        Self {
            tap: None,
            channels: 256,
            anchors: AnchorConfig::default(),
            rpn: RpnConfig::default(),
            roi: RoiConfig::default(),
            box_head: BoxHeadConfig::default(),
            mask_head: Some(MaskHeadConfig::default()),
            cascade: None,
            detections: DetectionConfig::default(),
        }
    }
}

/// Anchors of every level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnchorConfig {
    /// √area in pixels, one per level from p2 to p6.
    pub sizes: Vec<f32>,
    /// Height over width.
    pub ratios: Vec<f32>,
}

impl Default for AnchorConfig {
    fn default() -> Self {
        Self { sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0], ratios: vec![0.5, 1.0, 2.0] }
    }
}

/// The region proposal network (Faster R-CNN, arXiv 1506.01497).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RpnConfig {
    /// 3×3 convolutions before the scores.
    pub convs: usize,
    /// Below the first IoU an anchor is a negative, from the second one on a positive, between them neither.
    pub thresholds: [f32; 2],
    /// Anchors of an image that are trained on.
    pub sampled: usize,
    /// Largest share of positives among them.
    pub positive_fraction: f64,
    /// Proposals per level before suppression.
    pub pre_nms: Proposals,
    /// Proposals per image after it.
    pub post_nms: Proposals,
    /// IoU above which the worse of two proposals of a level goes.
    pub nms: f32,
    /// Proposals with a shorter side go, in pixels.
    pub min_size: f32,
    /// Where smooth L1 turns into L1; 0 is L1.
    pub beta: f64,
}

impl Default for RpnConfig {
    fn default() -> Self {
        Self {
            convs: 2,
            thresholds: [0.3, 0.7],
            sampled: 256,
            positive_fraction: 0.5,
            pre_nms: Proposals { train: 2000, test: 1000 },
            post_nms: Proposals { train: 1000, test: 1000 },
            nms: 0.7,
            min_size: 0.0,
            beta: 0.0,
        }
    }
}

/// How many proposals in training, and without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposals {
    /// In training.
    pub train: usize,
    /// In evaluation.
    pub test: usize,
}

/// Sampling and pooling of regions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoiConfig {
    /// Regions of an image that are trained on.
    pub sampled: usize,
    /// Largest share of positives among them.
    pub positive_fraction: f64,
    /// IoU from which on a region belongs to an object.
    pub iou: f32,
    /// √area of a region that is pooled from the level of the patch size, in pixels.
    pub canonical_size: f32,
}

impl Default for RoiConfig {
    fn default() -> Self {
        Self { sampled: 512, positive_fraction: 0.25, iou: 0.5, canonical_size: 224.0 }
    }
}

/// What follows a convolution of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// A bias.
    None,
    /// Layer norm over the channels, and no bias.
    Layer,
}

/// Convolutions, then fully connected layers, on 7×7 bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoxHeadConfig {
    /// Samples of RoIAlign along each axis of a bin; 0 adapts to the region.
    pub sampling_ratio: usize,
    /// 3×3 convolutions; none is Faster R-CNN's head with two fully connected layers.
    pub convs: usize,
    /// Their channels.
    pub conv_dim: usize,
    /// What follows each of them.
    pub norm: Norm,
    /// Fully connected layers.
    pub fcs: usize,
    /// Their width.
    pub fc_dim: usize,
    /// One box per region instead of one per class.
    pub class_agnostic: bool,
    /// Factors on the deltas of x, y, width and height.
    pub weights: [f32; 4],
    /// Where smooth L1 turns into L1; 0 is L1.
    pub beta: f64,
}

impl Default for BoxHeadConfig {
    fn default() -> Self {
        Self {
            sampling_ratio: 0,
            convs: 4,
            conv_dim: 256,
            norm: Norm::Layer,
            fcs: 1,
            fc_dim: 1024,
            class_agnostic: false,
            weights: [10.0, 10.0, 5.0, 5.0],
            beta: 0.0,
        }
    }
}

/// Convolutions on 14×14 bins, a deconvolution, one score per class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaskHeadConfig {
    /// Samples of RoIAlign along each axis of a bin; 0 adapts to the region.
    pub sampling_ratio: usize,
    /// 3×3 convolutions.
    pub convs: usize,
    /// Channels of everything in between.
    pub dim: usize,
    /// What follows each convolution.
    pub norm: Norm,
    /// Most regions of an image whose masks are trained; `null`: all that belong to an object.
    pub max_sampled: Option<usize>,
}

impl Default for MaskHeadConfig {
    fn default() -> Self {
        Self { sampling_ratio: 0, convs: 4, dim: 256, norm: Norm::Layer, max_sampled: None }
    }
}

/// Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726), one entry per stage; boxes are then class-agnostic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CascadeConfig {
    /// IoU from which on a region belongs to an object; that of the first stage replaces `roi.iou`.
    pub ious: Vec<f32>,
    /// Factors on the deltas; they replace `box_head.weights`.
    pub weights: Vec<[f32; 4]>,
}

impl Default for CascadeConfig {
    fn default() -> Self {
        Self {
            ious: vec![0.5, 0.6, 0.7],
            weights: vec![
                [10.0, 10.0, 5.0, 5.0],
                [20.0, 20.0, 10.0, 10.0],
                [30.0, 30.0, 15.0, 15.0],
            ],
        }
    }
}

/// From scores to detections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectionConfig {
    /// Only higher scores count.
    pub score_threshold: f32,
    /// What happens to boxes of one class that overlap.
    pub suppression: Suppression,
    /// Most detections of an image.
    pub per_image: usize,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self { score_threshold: 0.05, suppression: Suppression::Nms(0.5), per_image: 100 }
    }
}

/// What happens to boxes of one class that overlap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suppression {
    /// The worse of two with a higher IoU goes.
    Nms(f32),
    /// The worse of two loses score.
    SoftNms(SoftNmsConfig),
}

/// Soft-NMS.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftNmsConfig {
    /// How the score falls: `{ linear: IoU }` or `{ gaussian: σ }`.
    pub decay: Decay,
    /// Boxes whose score falls below go.
    #[serde(default = "default_min_score")]
    pub min_score: f32,
}

fn not_positive(value: f32) -> bool {
    value.is_nan() || value <= 0.0
}

fn default_min_score() -> f32 {
    0.001
}

impl MaskRcnnConfig {
    /// The weights of the box deltas and the least IoU of a positive, stage by stage.
    pub fn stages(&self) -> Vec<([f32; 4], f32)> {
        match &self.cascade {
            Some(cascade) => {
                cascade.weights.iter().copied().zip(cascade.ious.iter().copied()).collect()
            }
            None => vec![(self.box_head.weights, self.roi.iou)],
        }
    }

    /// Whether a region has one box for all classes.
    pub fn class_agnostic(&self) -> bool {
        self.box_head.class_agnostic || self.cascade.is_some()
    }

    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// If numbers of things that belong together differ, or something is empty.
    pub fn check(&self) -> Result<()> {
        if self.anchors.sizes.len() != LEVELS || self.anchors.ratios.is_empty() {
            return Err(Error::usage(format!(
                "`head.mask_rcnn.anchors` needs {LEVELS} sizes and at least one ratio, got {} and {}",
                self.anchors.sizes.len(),
                self.anchors.ratios.len()
            )));
        }
        if self.anchors.sizes.iter().chain(&self.anchors.ratios).any(|v| not_positive(*v)) {
            return Err(Error::usage("the numbers of `head.mask_rcnn.anchors` must be positive"));
        }
        let shares = [self.rpn.positive_fraction, self.roi.positive_fraction];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::usage(
                "`positive_fraction` of `head.mask_rcnn.rpn` and `.roi` must be between 0 and 1",
            ));
        }
        let [low, high] = self.rpn.thresholds;
        if !(0.0 <= low && low <= high) {
            return Err(Error::usage(format!(
                "`head.mask_rcnn.rpn.thresholds` must rise from at least 0, got {low} and {high}"
            )));
        }
        if not_positive(self.roi.canonical_size) {
            return Err(Error::usage("`head.mask_rcnn.roi.canonical_size` must be positive"));
        }
        if self.box_head.fcs == 0 {
            return Err(Error::usage("`head.mask_rcnn.box_head.fcs` must be at least 1"));
        }
        let mut weights = self.stages().into_iter().flat_map(|(weights, _)| weights);
        if weights.any(not_positive) {
            return Err(Error::usage(
                "the weights of box deltas in `head.mask_rcnn` must be positive",
            ));
        }
        if let Some(CascadeConfig { ious, weights }) = &self.cascade
            && (ious.len() != weights.len() || !(1..=MAX_STAGES).contains(&ious.len()))
        {
            return Err(Error::usage(format!(
                "`head.mask_rcnn.cascade` needs as many `ious` as `weights`, 1 to {MAX_STAGES}, got {} and {}",
                ious.len(),
                weights.len()
            )));
        }
        Ok(())
    }
}
