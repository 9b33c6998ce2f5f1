//! Erasing a rectangle (Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896; torchvision's `RandomErasing`).

use ndarray::{Array3, s};

use crate::config::Fill;
use crate::rng::Stream;

const ATTEMPTS: usize = 10;

/// What rectangle is drawn, and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) prob: f64,
    /// Range of the share of the image's area.
    pub(super) area: [f64; 2],
    /// Range of height over width.
    pub(super) ratio: [f64; 2],
}

/// Erases a rectangle of a normalised image `(3, H, W)`; nothing where none fits in ten attempts.
pub(super) fn apply(
    image: &mut Array3<f32>,
    Limits { prob, area, ratio }: Limits,
    fill: Fill,
    stream: &mut Stream,
) {
    if !stream.chance(prob) {
        return;
    }
    let (_, height, width) = image.dim();
    let pixels = (height * width) as f64;
    for _ in 0..ATTEMPTS {
        let erased = pixels * stream.range(area[0], area[1]);
        let shape = stream.range(ratio[0].ln(), ratio[1].ln()).exp();
        let h = (erased * shape).sqrt().round() as usize;
        let w = (erased / shape).sqrt().round() as usize;
        if h >= height || w >= width {
            continue;
        }
        let (top, left) = (stream.below(height - h + 1), stream.below(width - w + 1));
        let mut part = image.slice_mut(s![.., top..top + h, left..left + w]);
        match fill {
            Fill::Mean => part.fill(0.0),
            Fill::Noise => part.iter_mut().for_each(|value| *value = stream.normal() as f32),
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    #[test]
    fn rectangles_have_the_wanted_area_and_as_many_images_as_wanted_have_one() {
        let limits = Limits { prob: 0.5, area: [0.1, 0.3], ratio: [0.5, 2.0] };
        let mut erased = 0;
        for sample in 0..400 {
            let mut image = Array3::ones((3, 40, 50));
            let mut stream = Rng::new(2).stream(Purpose::Augment, sample, 0);
            apply(&mut image, limits, Fill::Mean, &mut stream);
            let share = image.iter().filter(|value| **value == 0.0).count() as f64 / 6000.0;
            erased += usize::from(share > 0.0);
            // Sides are rounded to pixels.
            assert!(share == 0.0 || (0.09..0.32).contains(&share), "{share}");
        }
        assert!((160..240).contains(&erased), "{erased}");
        let mut image = Array3::zeros((3, 40, 50));
        let certain = Limits { prob: 1.0, ..limits };
        apply(&mut image, certain, Fill::Noise, &mut Rng::new(0).stream(Purpose::Augment, 0, 0));
        let noise: Vec<f32> = image.iter().copied().filter(|value| *value != 0.0).collect();
        let variance = noise.iter().map(|v| v * v).sum::<f32>() / noise.len() as f32;
        assert!((variance - 1.0).abs() < 0.2, "{variance}");
    }
}
