//! From 8-bit `H × W × 3` to `(3, H, W)` floats, (x / 255 − mean) / std.

use image::RgbImage;
use ndarray::Array3;

/// The normalised value of each of the 256 levels, per channel.
#[derive(Debug, Clone)]
pub(super) struct Table([Vec<f32>; 3]);

impl Table {
    pub(super) fn new(mean: &[f32; 3], std: &[f32; 3]) -> Self {
        Self(std::array::from_fn(|c| {
            (0..256).map(|level| (level as f32 / 255.0 - mean[c]) / std[c]).collect()
        }))
    }

    pub(super) fn apply(&self, image: &RgbImage) -> Array3<f32> {
        let (height, width) = (image.height() as usize, image.width() as usize);
        let mut out = Array3::zeros((3, height, width));
        for (mut plane, (channel, levels)) in out.outer_iter_mut().zip(self.0.iter().enumerate()) {
            let source = image.as_raw().iter().skip(channel).step_by(3);
            plane
                .iter_mut()
                .zip(source)
                .for_each(|(value, level)| *value = levels[usize::from(*level)]);
        }
        out
    }
}
