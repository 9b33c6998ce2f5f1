//! Samples side by side as one batch.

use candle_core::{Device, Tensor};
use ndarray::{Array3, ArrayViewMut3, s};

use super::super::{Batch, Sample};
use crate::{Error, Result};

pub(super) fn sizes_differ<T>(a: &Sample<T>, b: &Sample<T>) -> Error {
    let size =
        |s: &Sample<T>| format!("`{}` is {}×{}", s.meta.name, s.image.dim().2, s.image.dim().1);
    Error::usage(format!(
        "images of a batch must have one size after the transforms, but {} and {}",
        size(a),
        size(b)
    ))
    .with_hint("end the training transforms with `random_crop` and `pad` to the same size")
}

/// Images that are smaller than the largest are padded right and bottom with zeros, the mean colour.
pub(super) fn stack<T>(items: Vec<(u64, Sample<T>)>) -> Result<Batch<T>> {
    let (channels, mut height, mut width) = items[0].1.image.dim();
    for (_, sample) in &items {
        let (_, h, w) = sample.image.dim();
        (height, width) = (height.max(h), width.max(w));
    }
    let mut values = Vec::with_capacity(items.len() * channels * height * width);
    let mut batch = (Vec::new(), Vec::new(), Vec::new());
    let count = items.len();
    for (number, sample) in items {
        append(&mut values, &sample.image, (height, width));
        batch.0.push(sample.target);
        batch.1.push(sample.meta);
        batch.2.push(number);
    }
    // A clip's planes are those of its frames, one after the other; features of images have no colours.
    let images = match channels.is_multiple_of(3) {
        true => (count * channels / 3, 3, height, width),
        false => (count, channels, height, width),
    };
    let images = Tensor::from_vec(values, images, &Device::Cpu)?;
    Ok(Batch { images, targets: batch.0, metas: batch.1, samples: batch.2 })
}

/// Appends an image that is padded to `height × width`.
fn append(values: &mut Vec<f32>, image: &Array3<f32>, (height, width): (usize, usize)) {
    let (channels, rows, columns) = image.dim();
    match image.as_slice() {
        Some(slice) if (rows, columns) == (height, width) => values.extend_from_slice(slice),
        _ => {
            let start = values.len();
            values.resize(start + channels * height * width, 0.0);
            let shape = (channels, height, width);
            if let Ok(mut target) = ArrayViewMut3::from_shape(shape, &mut values[start..]) {
                target.slice_mut(s![.., ..rows, ..columns]).assign(image);
            }
        }
    }
}
