//! Between images and a model: what goes in, and what its maps cover.

use candle_core::{Device, Tensor};
use image::RgbImage;
use rescatter::Result;
use rescatter::backbone::{Features, Vit};
use rescatter::data::transforms::{Frame, Pipeline};
use rescatter::head::ImageMeta;
use rescatter::rng::{Purpose, Rng};

/// `image` after the transforms of an evaluation, `[1, 3, H, W]`.
///
/// # Errors
/// If it is too small for the transforms.
pub(crate) fn input(pipeline: &Pipeline, image: &RgbImage) -> Result<(Tensor, ImageMeta)> {
    // The transforms of an evaluation draw nothing.
    let mut stream = Rng::new(0).stream(Purpose::Augment, 0, 0);
    let done = pipeline.apply(Frame::new(image.clone()), String::new(), &mut stream)?;
    let (c, h, w) = done.image.dim();
    let input =
        Tensor::from_iter(done.image.iter().copied(), &Device::Cpu)?.reshape((1, c, h, w))?;
    Ok((input, done.meta))
}

/// How many times tokens are dispatched, by learned dispatchers or at random.
pub(crate) fn dispatching_layers(backbone: &Vit) -> usize {
    backbone.dispatch().variant.dispatched().len() * backbone.dims().depth
}

/// Height and width in pixels that the maps cover.
pub(crate) fn extent(features: &Features) -> (usize, usize) {
    let pixels = |patches: usize| (patches as f32 * features.stride_px).round() as usize;
    (pixels(features.grid.0), pixels(features.grid.1))
}
