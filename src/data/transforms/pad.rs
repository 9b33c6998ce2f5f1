//! Padding right and bottom.

use image::RgbImage;
use ndarray::{Array3, s};

use super::{Frame, LabelMap};

/// Pads a normalised image with zeros, the mean colour.
pub(super) fn floats(image: Array3<f32>, size: [usize; 2]) -> Array3<f32> {
    let (channels, height, width) = image.dim();
    let (h, w) = (height.max(size[0]), width.max(size[1]));
    if (h, w) == (height, width) {
        return image;
    }
    let mut padded = Array3::zeros((channels, h, w));
    padded.slice_mut(s![.., ..height, ..width]).assign(&image);
    padded
}

/// Pads a label with the ignore index.
pub(super) fn label(label: LabelMap, size: [usize; 2], ignore_index: u16) -> LabelMap {
    let (height, width) = label.dim();
    let (h, w) = (height.max(size[0]), width.max(size[1]));
    if (h, w) == (height, width) {
        return label;
    }
    let mut padded = LabelMap::from_elem((h, w), ignore_index);
    padded.slice_mut(s![..height, ..width]).assign(&label);
    padded
}

/// Pads before normalising: the image with black.
pub(super) fn pixels(frame: &mut Frame, size: [usize; 2]) {
    let (height, width) = frame.size();
    let (h, w) = (height.max(size[0]), width.max(size[1]));
    if (h, w) != (height, width) {
        let mut padded = RgbImage::new(w as u32, h as u32);
        image::imageops::replace(&mut padded, &frame.image, 0, 0);
        frame.image = padded;
        frame.label = frame.label.take().map(|old| label(old, size, frame.ignore_index));
    }
}
