//! The steps of the input pipeline.

use serde::{Deserialize, Serialize};

/// One step of the input pipeline (mmsegmentation's names and semantics, in snake case).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TransformConfig {
    /// Resize to a scale drawn from a range, or to a fixed one, keeping the ratio or not.
    Resize {
        /// Height and width at factor 1; `null` means the image's own size.
        #[serde(default)]
        size: Option<[usize; 2]>,
        /// Range of the random factor.
        #[serde(default = "unit_range")]
        ratio_range: [f64; 2],
        /// Whether the aspect ratio stays (the image then fits into `size`).
        #[serde(default = "super::yes")]
        keep_ratio: bool,
        /// The shorter side is at least this.
        #[serde(default)]
        min_side: Option<usize>,
        /// Round both sides to the nearest multiple of this.
        #[serde(default)]
        multiple_of: Option<usize>,
    },
    /// Resize so that the shorter side is one of `sizes`, drawn at random, and the longer one at most `max_size`
    /// (detectron2's `ResizeShortestEdge`).
    ///
    /// Large-scale jitter (Ghiasi et al., arXiv 2012.07177) is `resize: { size: [1024, 1024], ratio_range: [0.1, 2.0] }`, then
    /// `random_crop` to 1024 × 1024, and `pad` to the same after `normalize`.
    ResizeShortestEdge {
        /// Lengths of the shorter side; evaluation takes one.
        sizes: Vec<usize>,
        /// Largest longer side.
        max_size: usize,
    },
    /// Random crop; redrawn up to ten times while one class covers more than `cat_max_ratio` of the labelled pixels.
    RandomCrop {
        /// Height and width.
        size: [usize; 2],
        /// 1 accepts every crop.
        #[serde(default = "unit")]
        cat_max_ratio: f64,
    },
    /// Crop of a random area and ratio, resized (Inception; classification and video).
    RandomResizedCrop {
        /// Height and width of the result.
        size: [usize; 2],
        /// Range of the area's share.
        #[serde(default = "default_area_range")]
        scale: [f64; 2],
    },
    /// The middle.
    CenterCrop {
        /// Height and width.
        size: [usize; 2],
    },
    /// Mirror left and right.
    RandomFlip {
        /// Probability.
        #[serde(default = "half")]
        prob: f64,
    },
    /// Brightness, contrast, saturation and hue as in SSD and mmsegmentation.
    PhotometricDistortion {
        /// Largest shift of the brightness.
        #[serde(default = "default_brightness")]
        brightness: f64,
        /// Range of the contrast factor.
        #[serde(default = "default_distortion_range")]
        contrast: [f64; 2],
        /// Range of the saturation factor.
        #[serde(default = "default_distortion_range")]
        saturation: [f64; 2],
        /// Largest shift of the hue (of 180).
        #[serde(default = "default_hue")]
        hue: f64,
    },
    /// Brightness, contrast and saturation by factors in `1 ± value` and a turn of the hue, in random order (torchvision's
    /// `ColorJitter`).
    ColorJitter {
        /// Largest change of the brightness factor.
        #[serde(default)]
        brightness: f64,
        /// Largest change of the contrast factor.
        #[serde(default)]
        contrast: f64,
        /// Largest change of the saturation factor.
        #[serde(default)]
        saturation: f64,
        /// Largest turn, as a share of the circle; at most ½.
        #[serde(default)]
        hue: f64,
    },
    /// `num_ops` of fourteen distortions, each with strength `magnitude` of 30 (Cubuk et al., arXiv 1909.13719; torchvision's
    /// `RandAugment`). For tasks whose labels do not follow the pixels: classification and video.
    RandAugment {
        /// Distortions per image.
        #[serde(default = "default_num_ops")]
        num_ops: usize,
        /// Strength, 0 to 30.
        #[serde(default = "default_magnitude")]
        magnitude: f64,
        /// Standard deviation of the strength (timm's `mstd`); 0 keeps it.
        #[serde(default)]
        magnitude_std: f64,
    },
    /// (x / 255 − mean) / std per channel; once, followed by `random_erasing` and `pad` at most.
    Normalize {
        /// RGB.
        #[serde(default = "imagenet_mean")]
        mean: [f32; 3],
        /// RGB.
        #[serde(default = "imagenet_std")]
        std: [f32; 3],
    },
    /// A rectangle without content, after `normalize` (Zhong et al., arXiv 1708.04896; torchvision's `RandomErasing`).
    RandomErasing {
        /// Probability.
        #[serde(default = "default_erasing_prob")]
        prob: f64,
        /// Range of the rectangle's share of the area.
        #[serde(default = "default_erased_area")]
        area: [f64; 2],
        /// Range of its height over its width.
        #[serde(default = "default_erased_ratio")]
        ratio: [f64; 2],
        /// What takes the content's place.
        #[serde(default)]
        fill: Fill,
    },
    /// Pad right and bottom: the image with zeros (after normalising), the label with the ignore index.
    Pad {
        /// Height and width that are reached at least.
        size: [usize; 2],
    },
}

impl TransformConfig {
    /// The key in the config.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resize { .. } => "resize",
            Self::ResizeShortestEdge { .. } => "resize_shortest_edge",
            Self::RandomCrop { .. } => "random_crop",
            Self::RandomResizedCrop { .. } => "random_resized_crop",
            Self::CenterCrop { .. } => "center_crop",
            Self::RandomFlip { .. } => "random_flip",
            Self::PhotometricDistortion { .. } => "photometric_distortion",
            Self::ColorJitter { .. } => "color_jitter",
            Self::RandAugment { .. } => "rand_augment",
            Self::RandomErasing { .. } => "random_erasing",
            Self::Normalize { .. } => "normalize",
            Self::Pad { .. } => "pad",
        }
    }

    /// Whether the same image may come out differently.
    pub fn is_random(&self) -> bool {
        match self {
            Self::Resize { ratio_range, .. } => ratio_range[0] != ratio_range[1],
            Self::ResizeShortestEdge { sizes, .. } => sizes.len() != 1,
            Self::CenterCrop { .. } | Self::Normalize { .. } | Self::Pad { .. } => false,
            _ => true,
        }
    }
}

/// What an erased rectangle shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// The mean colour, which is zero after normalising.
    #[default]
    Mean,
    /// Standard normal values, one per pixel and channel (timm's `pixel`).
    Noise,
}

fn unit() -> f64 {
    1.0
}
fn half() -> f64 {
    0.5
}
fn unit_range() -> [f64; 2] {
    [1.0, 1.0]
}
fn default_area_range() -> [f64; 2] {
    [0.08, 1.0]
}
fn default_brightness() -> f64 {
    32.0
}
fn default_distortion_range() -> [f64; 2] {
    [0.5, 1.5]
}
fn default_hue() -> f64 {
    18.0
}
fn default_num_ops() -> usize {
    2
}
fn default_magnitude() -> f64 {
    9.0
}
fn default_erasing_prob() -> f64 {
    0.25
}
fn default_erased_area() -> [f64; 2] {
    [0.02, 1.0 / 3.0]
}
fn default_erased_ratio() -> [f64; 2] {
    [0.3, 10.0 / 3.0]
}
fn imagenet_mean() -> [f32; 3] {
    [0.485, 0.456, 0.406]
}
fn imagenet_std() -> [f32; 3] {
    [0.229, 0.224, 0.225]
}
