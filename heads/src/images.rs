//! Between images and a model: what goes in, and what its maps cover.

use candle_core::{Device, Tensor};
use image::RgbImage;
use ndarray::Array3;
use rescatter::Result;
use rescatter::backbone::Features;
use rescatter::data::transforms::{Done, Frame, Pipeline};
use rescatter::head::ImageMeta;
use rescatter::rng::{Purpose, Rng};

/// `image` after the transforms of an evaluation, `[1, 3, H, W]` on the CPU.
///
/// # Errors
/// If it is too small for the transforms.
pub(crate) fn input(pipeline: &Pipeline, image: &RgbImage) -> Result<(Tensor, ImageMeta)> {
    let done = transformed(pipeline, image)?;
    Ok((pixels(&done.image, &Device::Cpu)?, done.meta))
}

/// `image` after the transforms of an evaluation, which draw nothing.
///
/// # Errors
/// If it is too small for the transforms.
pub(crate) fn transformed(pipeline: &Pipeline, image: &RgbImage) -> Result<Done> {
    let mut stream = Rng::new(0).stream(Purpose::Augment, 0, 0);
    pipeline.apply(Frame::new(image.clone()), String::new(), &mut stream)
}

/// The planes of an image, or of the frames of a clip, `(3·T, H, W)` → `[T, 3, H, W]` on `device`.
///
/// # Errors
/// If the device has no room.
pub(crate) fn pixels(planes: &Array3<f32>, device: &Device) -> candle_core::Result<Tensor> {
    let (count, height, width) = planes.dim();
    let values = Tensor::from_iter(planes.iter().copied(), device)?;
    values.reshape((count / 3, 3, height, width))
}

/// Height and width in pixels that the maps cover.
pub(crate) fn extent(features: &Features) -> (usize, usize) {
    let pixels = |patches: usize| (patches as f32 * features.stride_px).round() as usize;
    (pixels(features.grid.0), pixels(features.grid.1))
}
