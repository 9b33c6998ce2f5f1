//! Mixing the images of a batch in pairs: mixup (Zhang et al., arXiv 1710.09412) blends them, cutmix (Yun et al.,
//! arXiv 1905.04899) pastes a rectangle of one into the other.

use candle_core::{Device, Tensor};

use super::Batch;
use crate::Result;
use crate::config::MixConfig;
use crate::rng::{Purpose, Rng, Stream};

/// What an image shows: one class, or two with their shares after mixing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassTarget {
    /// The image's own class.
    pub class: u32,
    /// The class that was mixed in.
    pub other: u32,
    /// Share of the image's own class; the rest is the other's.
    pub share: f32,
}

impl From<u32> for ClassTarget {
    fn from(class: u32) -> Self {
        Self { class, other: class, share: 1.0 }
    }
}

/// Mixes batches; what is drawn depends on the number of a batch's first sample alone.
#[derive(Debug)]
pub struct Mixer {
    config: Option<MixConfig>,
    rng: Rng,
}

/// What is done to a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Plan {
    /// The share of an image's own pixels' values.
    Blend(f32),
    /// Top, left, bottom and right of what comes from the other image.
    Paste([usize; 4]),
    Keep,
}

impl Mixer {
    /// As the config wants it; without one, targets are single classes.
    pub fn new(config: Option<MixConfig>, seed: u64) -> Self {
        Self { config, rng: Rng::new(seed) }
    }

    /// Mixes image i with image B − 1 − i.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn apply(&self, batch: Batch<u32>) -> Result<Batch<ClassTarget>> {
        let Batch { images, targets, metas, samples } = batch;
        let plan = match (&self.config, samples.first()) {
            (Some(config), Some(first)) => {
                let (_, _, height, width) = images.dims4()?;
                let mut stream = self.rng.stream(Purpose::Mix, *first, 0);
                Plan::draw(config, (height, width), &mut stream)
            }
            _ => Plan::Keep,
        };
        let (images, share) = match plan {
            Plan::Keep => (images, 1.0),
            Plan::Blend(share) => (blended(&images, f64::from(share))?, share),
            Plan::Paste(window) => {
                let (_, _, height, width) = images.dims4()?;
                let [top, left, bottom, right] = window;
                let pasted = (bottom - top) * (right - left);
                let share = 1.0 - pasted as f32 / (height * width) as f32;
                (pasted_over(&images, window)?, share)
            }
        };
        let pairs = targets.iter().zip(targets.iter().rev());
        let mixed = pairs.map(|(class, other)| ClassTarget { class: *class, other: *other, share });
        Ok(Batch { images, targets: mixed.collect(), metas, samples })
    }
}

impl Plan {
    fn draw(config: &MixConfig, size: (usize, usize), stream: &mut Stream) -> Self {
        let (mixed, cut) = (stream.chance(config.prob), stream.chance(config.switch_prob));
        let alphas = (config.mixup, config.cutmix);
        match (alphas.0 > 0.0, alphas.1 > 0.0) {
            (false, false) => Self::Keep,
            _ if !mixed => Self::Keep,
            (true, false) => Self::Blend(stream.beta(alphas.0, alphas.0) as f32),
            (true, true) if !cut => Self::Blend(stream.beta(alphas.0, alphas.0) as f32),
            _ => Self::Paste(window(size, stream.beta(alphas.1, alphas.1), stream)),
        }
    }
}

/// A rectangle of the image's shape with `1 − share` of its area about a random place, cut at the borders.
fn window((height, width): (usize, usize), share: f64, stream: &mut Stream) -> [usize; 4] {
    let side = (1.0 - share).max(0.0).sqrt();
    let mut extent = |length: usize| {
        let (half, middle) = ((length as f64 * side) as usize / 2, stream.below(length));
        (middle.saturating_sub(half), (middle + half).min(length))
    };
    let ((top, bottom), (left, right)) = (extent(height), extent(width));
    [top, left, bottom, right]
}

fn blended(images: &Tensor, share: f64) -> candle_core::Result<Tensor> {
    (images * share)? + (images.flip(&[0])? * (1.0 - share))?
}

/// Every image with the window of the other one.
fn pasted_over(
    images: &Tensor,
    [top, left, bottom, right]: [usize; 4],
) -> candle_core::Result<Tensor> {
    let (count, channels, height, width) = images.dims4()?;
    let own: Vec<f32> = images.flatten_all()?.to_vec1()?;
    let mut values = own.clone();
    for (image, plane) in (0..count).flat_map(|image| (0..channels).map(move |c| (image, c))) {
        for row in top..bottom {
            let start = |image: usize| ((image * channels + plane) * height + row) * width;
            let (to, from) = (start(image), start(count - 1 - image));
            values[to + left..to + right].copy_from_slice(&own[from + left..from + right]);
        }
    }
    Tensor::from_vec(values, images.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::ImageMeta;

    /// Three images whose values are their numbers.
    fn batch(first: u64) -> Batch<u32> {
        let images: Vec<f32> = (0..3).flat_map(|n| vec![n as f32; 3 * 8 * 12]).collect();
        let meta =
            ImageMeta { name: String::new(), original: (8, 12), input: (8, 12), flipped: false };
        Batch {
            images: Tensor::from_vec(images, (3, 3, 8, 12), &Device::Cpu).unwrap(),
            targets: vec![5, 6, 7],
            metas: vec![meta; 3],
            samples: vec![first, first + 1, first + 2],
        }
    }

    fn mixed(config: MixConfig, first: u64) -> (Vec<f32>, Vec<ClassTarget>) {
        let batch = Mixer::new(Some(config), 3).apply(batch(first)).unwrap();
        let means = batch.images.mean((1, 2, 3)).unwrap().to_vec1().unwrap();
        (means, batch.targets)
    }

    #[test]
    fn images_and_targets_are_mixed_by_the_same_shares() {
        let only = |mixup, cutmix| MixConfig { mixup, cutmix, ..MixConfig::default() };
        for config in [only(0.8, 0.0), only(0.0, 1.0), only(0.8, 1.0)] {
            let mut shares = Vec::new();
            for first in 0..50 {
                let (means, targets) = mixed(config, first);
                let share = targets[0].share;
                let classes: Vec<_> = targets.iter().map(|t| (t.class, t.other)).collect();
                assert_eq!(classes, [(5, 7), (6, 6), (7, 5)]);
                // Image 0 is all zeros and its partner all twos.
                let expected = [2.0 * (1.0 - share), 1.0, 2.0 * share];
                let near = means.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!(near, "{means:?} is not {expected:?}");
                shares.push(share);
            }
            let mean = shares.iter().sum::<f32>() / 50.0;
            assert!((0.3..0.8).contains(&mean), "{mean}");
            shares.dedup();
            assert!(shares.len() > 40, "{shares:?}");
        }
        assert_eq!(mixed(only(0.8, 1.0), 9), mixed(only(0.8, 1.0), 9));
    }

    #[test]
    fn unmixed_batches_keep_their_classes() {
        let never = MixConfig { mixup: 1.0, prob: 0.0, ..MixConfig::default() };
        for config in [Some(never), Some(MixConfig::default()), None] {
            let found = Mixer::new(config, 3).apply(batch(0)).unwrap();
            assert!(found.targets.iter().all(|target| target.share == 1.0));
            assert_eq!(found.targets[2].class, 7);
        }
    }

    #[test]
    fn a_window_has_the_share_that_is_wanted_unless_the_border_cuts_it() {
        let mut stream = Rng::new(0).stream(Purpose::Mix, 0, 0);
        let mut whole = 0;
        for _ in 0..200 {
            let [top, left, bottom, right] = window((40, 60), 0.75, &mut stream);
            assert!(bottom <= 40 && right <= 60 && top <= bottom && left <= right);
            whole += usize::from((bottom - top, right - left) == (20, 30));
        }
        // The middle lies at least half a side from every border in a quarter of the draws.
        assert!((30..80).contains(&whole), "{whole}");
    }
}
