//! The input pipeline: mmsegmentation's transforms with its semantics, one file each.
//!
//! Image and label map always move together; what else belongs to an image (boxes, polygons, runs) follows the recorded
//! [`Geometry`] afterwards. Pixels stay 8-bit `H × W × 3` until `normalize` writes them once as `(3, H, W)`
//! floats; every random decision draws from the sample's own stream.

mod crop;
mod flip;
mod geometry;
mod normalize;
mod pad;
mod photometric;
mod resize;
mod resized_crop;
#[cfg(test)]
mod tests;

use image::RgbImage;
use ndarray::Array3;

use super::LabelMap;
use crate::config::TransformConfig;
use crate::head::ImageMeta;
use crate::rng::Stream;
use crate::{Error, Result};

pub use geometry::{Axis, Geometry};

/// A sample before it is normalised.
#[derive(Debug, Clone)]
pub struct Frame {
    /// 8-bit RGB.
    pub image: RgbImage,
    /// Of the image's size; absent in classification.
    pub label: Option<LabelMap>,
    /// What the label holds where nothing counts.
    pub ignore_index: u16,
    /// What was done to the pixels so far.
    pub geometry: Geometry,
    /// Where `center_crop` lies along what it cuts, 0 to 1; ½ is the middle.
    pub crop_place: f64,
}

impl Frame {
    /// An image as it is on disk, without a label map.
    pub fn new(image: RgbImage) -> Self {
        let geometry = Geometry::default();
        Self { image, label: None, ignore_index: 0, geometry, crop_place: 0.5 }
    }

    /// The same with a label map of its size.
    #[must_use]
    pub fn with_label(self, label: LabelMap, ignore_index: u16) -> Self {
        Self { label: Some(label), ignore_index, ..self }
    }

    /// The same with `center_crop` at another place than the middle.
    #[must_use]
    pub fn with_crop_place(self, crop_place: f64) -> Self {
        Self { crop_place, ..self }
    }

    /// Height and width.
    fn size(&self) -> (usize, usize) {
        (self.image.height() as usize, self.image.width() as usize)
    }
}

/// A sample after the last transform.
#[derive(Debug, Clone)]
pub struct Done {
    /// `(3, H, W)`, normalised.
    pub image: Array3<f32>,
    /// `H × W` (or the size on disk, see [`Labels::AsOnDisk`]).
    pub label: Option<LabelMap>,
    /// Name and sizes.
    pub meta: ImageMeta,
    /// What was done to the pixels.
    pub geometry: Geometry,
}

/// What happens to labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// They follow the image.
    Transformed,
    /// They stay as they are, for evaluation at the image's own size.
    AsOnDisk,
}

/// Checked transforms in their order.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Those on 8-bit pixels.
    pixel_steps: Vec<TransformConfig>,
    table: normalize::Table,
    /// Those after normalising: `pad` only.
    pads: Vec<[usize; 2]>,
    labels: Labels,
}

impl Pipeline {
    /// Checks the order and the numbers.
    ///
    /// # Errors
    /// If `normalize` is missing, given twice or followed by anything but `pad`; if a number is out of range; or if labels
    /// stay as on disk and a transform is random or crops.
    pub fn new(steps: &[TransformConfig], labels: Labels) -> Result<Self> {
        let Some(at) =
            steps.iter().position(|step| matches!(step, TransformConfig::Normalize { .. }))
        else {
            return Err(Error::usage("`transforms` has no `normalize`")
                .with_hint("add `- normalize: {}` after the others"));
        };
        let TransformConfig::Normalize { mean, std } = &steps[at] else {
            unreachable!("found by its kind")
        };
        let mut pads = Vec::new();
        for step in &steps[at + 1..] {
            match step {
                TransformConfig::Pad { size } => pads.push(*size),
                _ => {
                    return Err(Error::usage("only `pad` may follow `normalize`")
                        .with_hint("move `normalize` further down"));
                }
            }
        }
        for step in steps {
            check(step)?;
            if labels == Labels::AsOnDisk && !keeps_whole_image(step) {
                return Err(Error::usage(format!("`{}` cannot be used for evaluation", kind(step)))
                    .with_hint("evaluation compares whole images at their own size: use `resize`, `normalize` and `pad`"));
            }
        }
        Ok(Self {
            pixel_steps: steps[..at].to_vec(),
            table: normalize::Table::new(mean, std),
            pads,
            labels,
        })
    }

    /// Transforms one sample.
    ///
    /// # Errors
    /// If the image is too small for a transform.
    pub fn apply(&self, mut frame: Frame, name: String, stream: &mut Stream) -> Result<Done> {
        let original = frame.size();
        let kept = if self.labels == Labels::AsOnDisk { frame.label.take() } else { None };
        for step in &self.pixel_steps {
            apply(step, &mut frame, stream)?;
        }
        let input = frame.size();
        let mut image = self.table.apply(&frame.image);
        let mut label = frame.label;
        for size in &self.pads {
            image = pad::floats(image, *size);
            label = label.map(|label| pad::label(label, *size, frame.ignore_index));
        }
        let geometry = frame.geometry;
        let meta = ImageMeta { name, original, input, flipped: geometry.is_mirrored() };
        Ok(Done { image, label: label.or(kept), meta, geometry })
    }
}

/// The image with its shorter side reduced to `short_side` where it is longer.
pub(crate) fn shrunk(image: RgbImage, short_side: Option<usize>) -> Result<RgbImage> {
    let (height, width) = (image.height() as usize, image.width() as usize);
    let size = reduced((height, width), short_side);
    if size == (height, width) {
        return Ok(image);
    }
    resize::bilinear(&image, [0.0, 0.0, width as f64, height as f64], size)
}

/// Height and width whose shorter side is at most `short_side`.
pub(crate) fn reduced(
    (height, width): (usize, usize),
    short_side: Option<usize>,
) -> (usize, usize) {
    let short = height.min(width);
    match short_side {
        Some(side) if side < short => {
            let scaled =
                |length: usize| ((length * side) as f64 / short as f64).round().max(1.0) as usize;
            (scaled(height), scaled(width))
        }
        _ => (height, width),
    }
}

/// Applies one transform on pixels; `Normalize` is none.
fn apply(step: &TransformConfig, frame: &mut Frame, stream: &mut Stream) -> Result<()> {
    match step {
        TransformConfig::Resize { size, ratio_range, keep_ratio, min_side, multiple_of } => {
            let factor = stream.range(ratio_range[0], ratio_range[1]);
            let rule = resize::Rule {
                size: *size,
                keep_ratio: *keep_ratio,
                min_side: *min_side,
                multiple_of: *multiple_of,
            };
            resize::resize(frame, rule.target(frame.size(), factor))
        }
        TransformConfig::ResizeShortestEdge { sizes, max_size } => {
            let edge = sizes[stream.below(sizes.len())];
            resize::resize(frame, resize::shortest_edge(frame.size(), edge, *max_size))
        }
        TransformConfig::RandomCrop { size, cat_max_ratio } => {
            crop::random(frame, *size, *cat_max_ratio, stream);
            Ok(())
        }
        TransformConfig::RandomResizedCrop { size, scale } => {
            resized_crop::apply(frame, *size, *scale, stream)
        }
        TransformConfig::CenterCrop { size } => {
            crop::center(frame, *size);
            Ok(())
        }
        TransformConfig::RandomFlip { prob } => {
            if stream.chance(*prob) {
                flip::horizontal(frame);
            }
            Ok(())
        }
        TransformConfig::PhotometricDistortion { brightness, contrast, saturation, hue } => {
            photometric::Plan::draw(*brightness, *contrast, *saturation, *hue, stream)
                .apply(&mut frame.image);
            Ok(())
        }
        TransformConfig::Pad { size } => {
            pad::pixels(frame, *size);
            Ok(())
        }
        TransformConfig::Normalize { .. } => Ok(()),
    }
}

fn kind(step: &TransformConfig) -> &'static str {
    match step {
        TransformConfig::Resize { .. } => "resize",
        TransformConfig::ResizeShortestEdge { .. } => "resize_shortest_edge",
        TransformConfig::RandomCrop { .. } => "random_crop",
        TransformConfig::RandomResizedCrop { .. } => "random_resized_crop",
        TransformConfig::CenterCrop { .. } => "center_crop",
        TransformConfig::RandomFlip { .. } => "random_flip",
        TransformConfig::PhotometricDistortion { .. } => "photometric_distortion",
        TransformConfig::Normalize { .. } => "normalize",
        TransformConfig::Pad { .. } => "pad",
    }
}

fn keeps_whole_image(step: &TransformConfig) -> bool {
    match step {
        TransformConfig::Resize { ratio_range, .. } => ratio_range[0] == ratio_range[1],
        TransformConfig::ResizeShortestEdge { sizes, .. } => sizes.len() == 1,
        TransformConfig::Normalize { .. } | TransformConfig::Pad { .. } => true,
        _ => false,
    }
}

/// Refuses numbers that no image could be transformed with.
fn check(step: &TransformConfig) -> Result<()> {
    let wrong = |what: String| Err(Error::usage(format!("`{}`: {what}", kind(step))));
    let size = match step {
        TransformConfig::Resize { size, .. } => *size,
        TransformConfig::RandomCrop { size, .. }
        | TransformConfig::RandomResizedCrop { size, .. }
        | TransformConfig::CenterCrop { size }
        | TransformConfig::Pad { size } => Some(*size),
        _ => None,
    };
    if let Some([height, width]) = size
        && (height == 0 || width == 0)
    {
        return wrong(format!("size [{height}, {width}] has no pixels"));
    }
    let range = |what: &str, [low, high]: [f64; 2], least: f64| {
        let good = low.is_finite() && high.is_finite() && low <= high && low >= least;
        if good {
            Ok(())
        } else {
            wrong(format!("{what} [{low}, {high}] must rise and start at {least} or above"))
        }
    };
    let share = |what: &str, value: f64| {
        if (0.0..=1.0).contains(&value) {
            Ok(())
        } else {
            wrong(format!("{what} {value} must lie in 0 to 1"))
        }
    };
    match step {
        TransformConfig::Resize { ratio_range, multiple_of, .. } => {
            if *multiple_of == Some(0) {
                return wrong("multiple_of must not be 0".into());
            }
            range("ratio_range", *ratio_range, 1e-3)
        }
        TransformConfig::ResizeShortestEdge { sizes, max_size } => {
            if sizes.is_empty() || sizes.contains(&0) {
                return wrong("sizes must list lengths of 1 or more".into());
            }
            match sizes.iter().find(|edge| *edge > max_size) {
                Some(edge) => wrong(format!("the edge {edge} is above max_size {max_size}")),
                None => Ok(()),
            }
        }
        TransformConfig::RandomCrop { cat_max_ratio, .. } => share("cat_max_ratio", *cat_max_ratio),
        TransformConfig::RandomResizedCrop { scale, .. } => {
            range("scale", *scale, 1e-6).and(share("scale", scale[1]))
        }
        TransformConfig::RandomFlip { prob } => share("prob", *prob),
        TransformConfig::PhotometricDistortion { contrast, saturation, brightness, hue } => {
            range("contrast", *contrast, 0.0).and(range("saturation", *saturation, 0.0))?;
            range("brightness", [-brightness, *brightness], f64::MIN).and(range(
                "hue",
                [-hue, *hue],
                -180.0,
            ))
        }
        TransformConfig::Normalize { std, .. } if std.iter().any(|s| *s <= 0.0) => {
            wrong("std must be positive".into())
        }
        _ => Ok(()),
    }
}
