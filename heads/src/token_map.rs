//! Who worked where, as a picture.

use candle_core::Result;
use ndarray::Array2;
use rescatter::backbone::Features;

/// How many layers worked on each patch, one grid per image; nothing for a model without dispatchers, or where tokens were
/// merged before a dispatcher saw them.
pub(crate) fn worked_grids(features: &Features) -> Result<Vec<Array2<f32>>> {
    let (rows, columns) = features.grid;
    for layer in &features.kept.layers {
        if layer.mask.dim(1)? != rows * columns {
            return Ok(Vec::new());
        }
    }
    features.kept.token_map(features.grid)
}

/// A value per patch → the same value at each of the patch's pixels, cut to `size`.
pub(crate) fn in_pixels(grid: &Array2<f32>, patch: f32, size: (usize, usize)) -> Array2<f32> {
    let (rows, columns) = grid.dim();
    let patch_of =
        |pixel: usize, patches: usize| ((pixel as f32 / patch) as usize).min(patches - 1);
    Array2::from_shape_fn(size, |(y, x)| grid[[patch_of(y, rows), patch_of(x, columns)]])
}

/// The nearest value at another size.
pub(crate) fn nearest(map: &Array2<f32>, (height, width): (usize, usize)) -> Array2<f32> {
    let (h, w) = map.dim();
    Array2::from_shape_fn((height, width), |(y, x)| map[[y * h / height, x * w / width]])
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use rescatter::dispatch::{KeptStats, LayerKept};

    use super::*;

    #[test]
    fn merged_tokens_have_no_map() -> Result<()> {
        let grids = |patches: &[usize]| -> Result<usize> {
            let layer = |&patches: &usize| -> Result<LayerKept> {
                let mask = Tensor::ones((1, patches), DType::F32, &Device::Cpu)?;
                Ok(LayerKept { logit: mask.clone(), mask })
            };
            let layers = patches.iter().map(layer).collect::<Result<_>>()?;
            let tokens = Tensor::zeros((1, 1, 2), DType::F32, &Device::Cpu)?;
            let kept = KeptStats { layers };
            let features = Features { grid: (2, 3), kept, ..Features::of_pooled(tokens) };
            Ok(worked_grids(&features)?.len())
        };
        assert_eq!((grids(&[6, 6])?, grids(&[])?), (1, 0));
        assert_eq!((grids(&[5, 4])?, grids(&[6, 5])?), (0, 0));
        Ok(())
    }
}
