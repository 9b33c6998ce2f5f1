//! The input pipeline: mmsegmentation's transforms with its semantics, one file each.
//!
//! Image and label map always move together; what else belongs to an image (boxes, polygons, runs) follows the recorded
//! [`Geometry`] afterwards. Pixels stay 8-bit `H × W × 3` until `normalize` writes them once as `(3, H, W)`
//! floats; every random decision draws from the sample's own stream.

mod check;
mod color_jitter;
mod crop;
mod enhance;
mod erasing;
mod flip;
mod geometry;
mod normalize;
mod pad;
mod photometric;
mod rand_augment;
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
    /// Where `center_crop` lies along the longer side, 0 to 1; ½ is the middle, where it lies along the other.
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
    /// One class for the whole image (or clip), wherever its pixels go.
    OfTheWhole,
}

/// Checked transforms in their order.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Those on 8-bit pixels.
    pixel_steps: Vec<TransformConfig>,
    table: normalize::Table,
    /// Those after normalising: `random_erasing` and `pad`.
    float_steps: Vec<TransformConfig>,
    labels: Labels,
}

impl Pipeline {
    /// Checks the order and the numbers.
    ///
    /// # Errors
    /// If `normalize` is missing, given twice or followed by anything but `random_erasing` and `pad`; if a number is out of
    /// range; if labels stay as on disk and a transform is random, crops or pads 8-bit pixels; or if a transform moves pixels in a way that
    /// labels cannot follow.
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
        let after = |step: &&TransformConfig| {
            matches!(step, TransformConfig::Pad { .. } | TransformConfig::RandomErasing { .. })
        };
        if !steps[at + 1..].iter().all(|step| after(&step)) {
            return Err(Error::usage("only `random_erasing` and `pad` may follow `normalize`")
                .with_hint("move `normalize` further down"));
        }
        if steps[..at].iter().any(|step| matches!(step, TransformConfig::RandomErasing { .. })) {
            return Err(Error::usage("`random_erasing` must follow `normalize`")
                .with_hint("move it behind `normalize`"));
        }
        if pads(&steps[..at]) && labels == Labels::AsOnDisk {
            return Err(Error::usage("`pad` before `normalize` makes padding a part of the image")
                .with_hint("move it behind `normalize`"));
        }
        for step in steps {
            check::numbers(step)?;
            if labels != Labels::OfTheWhole && matches!(step, TransformConfig::RandAugment { .. }) {
                return Err(Error::usage("`rand_augment` moves pixels where labels cannot follow")
                    .with_hint("it is for classification and video; for colours alone there are `color_jitter` and `photometric_distortion`"));
            }
            if labels == Labels::AsOnDisk && !keeps_whole_image(step) {
                return Err(Error::usage(format!("`{}` cannot be used for evaluation", step.name()))
                    .with_hint("evaluation compares whole images at their own size: use `resize`, `normalize` and `pad`"));
            }
        }
        Ok(Self {
            pixel_steps: steps[..at].to_vec(),
            table: normalize::Table::new(mean, std),
            float_steps: steps[at + 1..].to_vec(),
            labels,
        })
    }

    /// Whether padding is a part of the image for what follows, and of `ImageMeta::input`.
    pub(crate) fn pads_pixels(&self) -> bool {
        pads(&self.pixel_steps)
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
        for step in &self.float_steps {
            match step {
                TransformConfig::Pad { size } => {
                    image = pad::floats(image, *size);
                    label = label.map(|label| pad::label(label, *size, frame.ignore_index));
                }
                TransformConfig::RandomErasing { prob, area, ratio, fill } => {
                    let limits = erasing::Limits { prob: *prob, area: *area, ratio: *ratio };
                    erasing::apply(&mut image, limits, *fill, stream);
                }
                _ => {}
            }
        }
        let geometry = frame.geometry;
        let meta = ImageMeta { name, original, input, flipped: geometry.is_mirrored() };
        Ok(Done { image, label: label.or(kept), meta, geometry })
    }
}

fn pads(steps: &[TransformConfig]) -> bool {
    steps.iter().any(|step| matches!(step, TransformConfig::Pad { .. }))
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
        TransformConfig::ColorJitter { brightness, contrast, saturation, hue } => {
            let factors = [*brightness, *contrast, *saturation];
            color_jitter::apply(&mut frame.image, factors, *hue, stream);
            Ok(())
        }
        TransformConfig::RandAugment { num_ops, magnitude, magnitude_std } => {
            let strength = rand_augment::Strength { mean: *magnitude, std: *magnitude_std };
            rand_augment::apply(&mut frame.image, *num_ops, strength, stream);
            Ok(())
        }
        TransformConfig::Pad { size } => {
            pad::pixels(frame, *size);
            Ok(())
        }
        TransformConfig::Normalize { .. } | TransformConfig::RandomErasing { .. } => Ok(()),
    }
}

fn keeps_whole_image(step: &TransformConfig) -> bool {
    !step.is_random() && !matches!(step, TransformConfig::CenterCrop { .. })
}
