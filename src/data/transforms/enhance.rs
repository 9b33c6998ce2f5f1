//! Pillow's enhancements of 8-bit pictures, with its rounding: what torchvision applies to images.
//!
//! Each blends the image with a degenerate one: `degenerate + factor · (image − degenerate)`; factor 1 changes nothing.

use image::{Rgb, RgbImage};

use super::photometric::{hsv_from_rgb, rgb_from_hsv};

/// Towards black.
pub(super) fn brightness(image: &mut RgbImage, factor: f32) {
    map_values(image, |value| blend(0.0, value, factor));
}

/// Towards the mean grey.
pub(super) fn contrast(image: &mut RgbImage, factor: f32) {
    let sum: u64 = image.pixels().map(|pixel| u64::from(grey(pixel.0))).sum();
    let pixels = u64::from(image.width()) * u64::from(image.height());
    let mean = (sum as f64 / pixels.max(1) as f64 + 0.5).floor() as f32;
    map_values(image, |value| blend(mean, value, factor));
}

/// Towards each pixel's own grey.
pub(super) fn saturation(image: &mut RgbImage, factor: f32) {
    for pixel in image.pixels_mut() {
        let grey = f32::from(grey(pixel.0));
        *pixel = Rgb(pixel.0.map(|value| blend(grey, f32::from(value), factor)));
    }
}

/// Towards a smoothed image, whose border stays as it is.
pub(super) fn sharpness(image: &mut RgbImage, factor: f32) {
    let smooth = smoothed(image);
    for (value, smooth) in image.iter_mut().zip(smooth.iter()) {
        *value = blend(f32::from(*smooth), f32::from(*value), factor);
    }
}

/// Turns the hue by `turn` of the circle.
pub(super) fn hue(image: &mut RgbImage, turn: f32) {
    for pixel in image.pixels_mut() {
        let [hue, saturation, value] = hsv_from_rgb(pixel.0);
        *pixel = Rgb(rgb_from_hsv([hue + 6.0 * turn, saturation, value]));
    }
}

/// Replaces every value by what `f` makes of it.
pub(super) fn map_values(image: &mut RgbImage, f: impl Fn(f32) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| f(value as f32));
    image.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// Truncated and cut to 0..=255, as Pillow's `Image.blend`.
fn blend(degenerate: f32, value: f32, factor: f32) -> u8 {
    (degenerate + factor * (value - degenerate)) as u8
}

/// ITU-R 601-2 luma in 16 bits, as Pillow's conversion to `L`.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Pillow's `SMOOTH`: weights 1 around 5, over 13.
fn smoothed(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let centre = image.get_pixel(x, y).0;
        if x == 0 || y == 0 || x + 1 >= width || y + 1 >= height {
            return Rgb(centre);
        }
        Rgb(std::array::from_fn(|c| {
            let around = (y - 1..=y + 1).flat_map(|j| (x - 1..=x + 1).map(move |i| (i, j)));
            let sum: u32 = around.map(|(i, j)| u32::from(image.get_pixel(i, j).0[c])).sum();
            // Rounded half up: 13 is odd, so there are no halves.
            ((sum + 4 * u32::from(centre[c]) + 6) / 13) as u8
        }))
    })
}
