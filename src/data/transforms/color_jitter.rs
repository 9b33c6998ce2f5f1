//! Brightness, contrast, saturation and hue in random order (torchvision's `ColorJitter`).

use image::RgbImage;

use super::enhance;
use crate::rng::Stream;

/// `factors`: the largest changes of brightness, contrast and saturation; `hue` in turns.
pub(super) fn apply(image: &mut RgbImage, factors: [f64; 3], hue: f64, stream: &mut Stream) {
    let mut order = [0, 1, 2, 3];
    stream.shuffle(&mut order);
    let drawn = factors.map(|change| stream.range((1.0 - change).max(0.0), 1.0 + change) as f32);
    let turn = stream.range(-hue, hue) as f32;
    for step in order {
        match step {
            0 if factors[0] > 0.0 => enhance::brightness(image, drawn[0]),
            1 if factors[1] > 0.0 => enhance::contrast(image, drawn[1]),
            2 if factors[2] > 0.0 => enhance::saturation(image, drawn[2]),
            3 if hue > 0.0 => enhance::hue(image, turn),
            _ => {}
        }
    }
}
