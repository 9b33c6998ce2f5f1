//! Random distortions (Cubuk et al., "RandAugment", arXiv 1909.13719): torchvision's fourteen, with its strengths.

use image::{Rgb, RgbImage};

use super::enhance;
use crate::rng::Stream;

/// The largest strength, at which the largest values of the distortions are reached.
const STEPS: f64 = 30.0;

/// Normal with this mean and standard deviation, cut to 0..=30.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strength {
    pub(super) mean: f64,
    pub(super) std: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

const OPS: [Op; 14] = [
    Op::Identity,
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
    Op::Rotate,
    Op::Brightness,
    Op::Color,
    Op::Contrast,
    Op::Sharpness,
    Op::Posterize,
    Op::Solarize,
    Op::AutoContrast,
    Op::Equalize,
];

/// Applies `num_ops` distortions, each drawn anew. As many numbers are drawn whatever the image is, so that the frames of a
/// clip are distorted alike.
pub(super) fn apply(image: &mut RgbImage, num_ops: usize, strength: Strength, stream: &mut Stream) {
    for _ in 0..num_ops {
        let op = OPS[stream.below(OPS.len())];
        let sign = if stream.chance(0.5) { -1.0 } else { 1.0 };
        let drawn = strength.mean + strength.std * stream.normal();
        op.apply(image, drawn.clamp(0.0, STEPS) / STEPS, sign);
    }
}

impl Op {
    /// With `level` in 0 to 1; the sign matters where a distortion has two directions.
    fn apply(self, image: &mut RgbImage, level: f64, sign: f64) {
        let (width, height) = (f64::from(image.width()), f64::from(image.height()));
        let factor = (1.0 + sign * 0.9 * level) as f32;
        let slope = sign * 0.3 * level;
        // Whole pixels, cut towards zero.
        let shift = |side: f64| (sign * level * 150.0 / 331.0 * side).trunc();
        match self {
            Self::Identity => {}
            Self::ShearX => warp(image, [1.0, slope, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY => warp(image, [1.0, 0.0, 0.0, slope, 1.0, 0.0]),
            Self::TranslateX => warp(image, [1.0, 0.0, -shift(width), 0.0, 1.0, 0.0]),
            Self::TranslateY => warp(image, [1.0, 0.0, 0.0, 0.0, 1.0, -shift(height)]),
            Self::Rotate => {
                // Counter-clockwise about the middle.
                let (sin, cos) = (-sign * 30.0 * level).to_radians().sin_cos();
                let (x, y) = (width / 2.0, height / 2.0);
                let back = [x - cos * x - sin * y, y + sin * x - cos * y];
                warp(image, [cos, sin, back[0], -sin, cos, back[1]]);
            }
            Self::Brightness => enhance::brightness(image, factor),
            Self::Color => enhance::saturation(image, factor),
            Self::Contrast => enhance::contrast(image, factor),
            Self::Sharpness => enhance::sharpness(image, factor),
            Self::Posterize => {
                let bits = 8 - (4.0 * level).round_ties_even() as u32;
                let mask = (0xFF00_u32 >> bits) as u8;
                enhance::map_values(image, |value| value as u8 & mask);
            }
            Self::Solarize => {
                let threshold = (255.0 * (1.0 - level)) as f32;
                let solar = |v: f32| if v < threshold { v as u8 } else { 255 - v as u8 };
                enhance::map_values(image, solar);
            }
            Self::AutoContrast => per_channel(image, stretched),
            Self::Equalize => per_channel(image, equalized),
        }
    }
}

/// Output pixel (x, y) takes the pixel in which `(a·x + b·y + c, d·x + e·y + f)` lies, x and y at the pixels' middles; black
/// from outside.
fn warp(image: &mut RgbImage, [a, b, c, d, e, f]: [f64; 6]) {
    let source = std::mem::take(image);
    let inside =
        |place: f64, end: u32| (place >= 0.0 && place < f64::from(end)).then_some(place as u32);
    *image = RgbImage::from_fn(source.width(), source.height(), |x, y| {
        let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
        let from =
            (inside(a * x + b * y + c, source.width()), inside(d * x + e * y + f, source.height()));
        match from {
            (Some(x), Some(y)) => *source.get_pixel(x, y),
            _ => Rgb([0; 3]),
        }
    });
}

/// Replaces the values of each channel by the table that its histogram gives.
fn per_channel(image: &mut RgbImage, table: fn(&[u32; 256]) -> Option<[u8; 256]>) {
    for channel in 0..3 {
        let mut histogram = [0; 256];
        image.pixels().for_each(|pixel| histogram[usize::from(pixel.0[channel])] += 1);
        if let Some(table) = table(&histogram) {
            let values = image.pixels_mut().map(|pixel| &mut pixel.0[channel]);
            values.for_each(|value| *value = table[usize::from(*value)]);
        }
    }
}

/// Stretches the values that occur to 0..=255 (Pillow's `autocontrast`).
fn stretched(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let low = histogram.iter().position(|count| *count > 0)?;
    let high = histogram.iter().rposition(|count| *count > 0)?;
    let scale = 255.0 / (high as f64 - low as f64);
    (high > low)
        .then(|| std::array::from_fn(|value| (value as f64 * scale - low as f64 * scale) as u8))
}

/// Lets all values occur equally often (Pillow's `equalize`).
fn equalized(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let last = histogram.iter().rposition(|count| *count > 0)?;
    let step = histogram[..last].iter().sum::<u32>() / 255;
    if step == 0 {
        return None;
    }
    let mut below = step / 2;
    Some(std::array::from_fn(|value| {
        let place = below / step;
        below += histogram[value];
        place.min(255) as u8
    }))
}

#[cfg(test)]
mod tests;
