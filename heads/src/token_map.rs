//! Who worked where, as a picture.

use candle_core::Result;
use ndarray::Array2;
use rescatter::backbone::Features;

/// How many layers worked on each patch, one grid per image; nothing for a model without dispatchers.
pub(crate) fn worked_grids(features: &Features) -> Result<Vec<Array2<f32>>> {
    if features.kept.layers.is_empty() {
        Ok(Vec::new())
    } else {
        features.kept.token_map(features.grid)
    }
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
