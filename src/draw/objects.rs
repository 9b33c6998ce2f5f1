//! Boxes, masks and captions.

use image::{Rgb, RgbImage};

use super::{BLACK, LINE, fill, mix, text, text_width};
use crate::data::InstanceMask;

/// How much of the image a mask hides.
const OPACITY: f32 = 0.45;

/// One object over an image.
#[derive(Debug, Clone)]
pub struct Drawn<'a> {
    /// (x0, y0, x1, y1) in pixels of the image.
    pub bbox: [f32; 4],
    /// Its pixels, if they are known.
    pub mask: Option<&'a InstanceMask>,
    /// Of outline and mask.
    pub colour: Rgb<u8>,
    /// Above the box, or in its corner where there is no room; may be empty.
    pub caption: String,
}

/// Draws objects, the later over the earlier; what lies outside the image is cut off.
pub fn objects(image: &mut RgbImage, objects: &[Drawn]) {
    for object in objects {
        if let Some(mask) = object.mask {
            let (top, left) = mask.origin;
            for ((y, x), _) in mask.bitmap.indexed_iter().filter(|(_, inside)| **inside > 0) {
                let place = ((left + x) as u32, (top + y) as u32);
                if let Some(pixel) = image.get_pixel_mut_checked(place.0, place.1) {
                    *pixel = mix(*pixel, object.colour, OPACITY);
                }
            }
        }
        outline(image, object.bbox, object.colour);
    }
    // Captions last, so that no mask covers them.
    for object in objects.iter().filter(|object| !object.caption.is_empty()) {
        let [x, y] = [object.bbox[0], object.bbox[1]].map(|v| v.max(0.0) as u32);
        let line = LINE.val() as u32;
        let y = y.checked_sub(line).unwrap_or(y);
        fill(image, [x, y, text_width(&object.caption), line], object.colour);
        text(image, (x, y), &object.caption, BLACK);
    }
}

fn outline(image: &mut RgbImage, bbox: [f32; 4], colour: Rgb<u8>) {
    let (width, height) = image.dimensions();
    if width == 0 || height == 0 {
        return;
    }
    let last = |value: f32, end: u32| (value.max(0.0) as u32).min(end - 1);
    let (x0, y0) = (last(bbox[0], width), last(bbox[1], height));
    let (x1, y1) = (last(bbox[2] - 1.0, width).max(x0), last(bbox[3] - 1.0, height).max(y0));
    for y in [y0, y1] {
        fill(image, [x0, y, x1 - x0 + 1, 1], colour);
    }
    for x in [x0, x1] {
        fill(image, [x, y0, 1, y1 - y0 + 1], colour);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn boxes_are_outlined_and_masks_shine_through() {
        let mut image = RgbImage::from_pixel(8, 6, Rgb([100; 3]));
        let mask = InstanceMask { origin: (2, 3), bitmap: Array2::ones((1, 2)) };
        let colour = Rgb([200, 0, 0]);
        let object =
            Drawn { bbox: [1.0, 1.0, 7.0, 9.0], mask: Some(&mask), colour, caption: "".into() };
        objects(&mut image, &[object]);
        assert_eq!(image.get_pixel(1, 1), &colour);
        assert_eq!(image.get_pixel(6, 5), &colour, "cut at the lower edge");
        assert_eq!(image.get_pixel(7, 1), &Rgb([100; 3]));
        assert_eq!(image.get_pixel(4, 2), &Rgb([145, 55, 55]));
        assert_eq!(image.get_pixel(2, 2), &Rgb([100; 3]));
    }
}
