//! Video classification: the views of a video, what is said of it, and classes over time.

mod predictor;

use candle_core::Tensor;
use rescatter::Result;
use rescatter::head::ImageMeta;
use rescatter::metrics;
use rescatter::model::Model;
use serde::{Deserialize, Serialize};

pub use predictor::{VideoPrediction, VideoPredictor, Window};

use crate::TemporalHead;
use crate::kept::Kept;

/// How many of the best classes are named.
const NAMED: usize = 5;

/// What a model said of one video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoResult {
    /// Its path in the list.
    pub video: String,
    /// Its class by the list.
    pub label: u32,
    /// The best classes, falling.
    pub top: Vec<Guess>,
}

/// A class and how sure the model is of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Guess {
    /// Its number.
    pub class: u32,
    /// The softmax of its logit.
    pub probability: f32,
}

impl VideoResult {
    /// From the logits of all classes.
    pub fn new(video: &str, label: u32, logits: &[f32]) -> Self {
        Self { video: video.into(), label, top: best(logits) }
    }
}

/// The best classes of `logits`, falling; of equal ones the lower first.
pub fn best(logits: &[f32]) -> Vec<Guess> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    let guess = |class: usize| Guess {
        class: class as u32,
        probability: (logits[class] - largest).exp() / total,
    };
    metrics::best(logits, NAMED).into_iter().map(guess).collect()
}

/// The mean of each class's logit over several views.
pub(crate) fn mean(views: &[Vec<f32>]) -> Vec<f32> {
    let classes = views.first().map_or(0, Vec::len);
    let sum = |class: usize| views.iter().map(|logits| logits[class]).sum::<f32>();
    (0..classes).map(|class| sum(class) / views.len() as f32).collect()
}

/// The mean logits over all clips of `frames` frames in `images` `[V·T, 3, H, W]`, the views of one video.
///
/// # Errors
/// If there are no whole clips.
pub(crate) fn averaged(
    model: &Model<TemporalHead>,
    images: &Tensor,
    frames: usize,
    meta: &ImageMeta,
) -> Result<(Vec<f32>, Kept)> {
    let views = (images.dim(0)? / frames.max(1)).max(1);
    let images = images.to_device(model.params.device())?;
    let (logits, stats) = model.predict(&images, &vec![meta.clone(); views])?;
    let mut kept = Kept::default();
    kept.count(&stats)?;
    Ok((mean(&logits), kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_averaged_and_the_best_come_first() {
        assert_eq!(mean(&[vec![1.0, 0.0], vec![3.0, -2.0]]), [2.0, -1.0]);
        let guesses = best(&[0.0, 2.0, 2.0]);
        assert_eq!(guesses.iter().map(|guess| guess.class).collect::<Vec<_>>(), [1, 2, 0]);
        let total: f32 = guesses.iter().map(|guess| guess.probability).sum();
        assert!((total - 1.0).abs() < 1e-6);
    }
}
