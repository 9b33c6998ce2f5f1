//! What a model saw, for people.

use candle_core::Tensor;
use image::{Rgb, RgbImage};
use ndarray::Array3;
use rescatter::config::{SplitConfig, TransformConfig};

/// The way back from normalised values to pixels.
pub(crate) struct Pixels {
    mean: [f32; 3],
    std: [f32; 3],
}

impl Pixels {
    /// As the `normalize` of `split` says.
    pub(crate) fn of(split: &SplitConfig) -> Self {
        let parts = split.concat.iter().flatten().flat_map(|part| &part.transforms);
        let given = split.transforms.iter().chain(parts).find_map(|step| match step {
            TransformConfig::Normalize { mean, std } => Some(Self { mean: *mean, std: *std }),
            _ => None,
        });
        given.unwrap_or(Self { mean: [0.0; 3], std: [1.0; 3] })
    }

    /// Of `[3, H, W]`.
    pub(crate) fn of_image(&self, image: &Tensor) -> anyhow::Result<RgbImage> {
        let (channels, height, width) = image.dims3()?;
        let values = image.flatten_all()?.to_vec1::<f32>()?;
        let values = Array3::from_shape_vec((channels, height, width), values)?;
        Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
            Rgb(std::array::from_fn(|c| {
                let value = values[(c, y as usize, x as usize)] * self.std[c] + self.mean[c];
                (value * 255.0).round().clamp(0.0, 255.0) as u8
            }))
        }))
    }

    /// Of the frames `[T, 3, H, W]`.
    pub(crate) fn of_clip(&self, clip: &Tensor) -> anyhow::Result<Vec<RgbImage>> {
        (0..clip.dim(0)?).map(|frame| self.of_image(&clip.get(frame)?)).collect()
    }
}
