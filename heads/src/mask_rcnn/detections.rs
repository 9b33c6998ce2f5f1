//! From scored regions to detections.

use ndarray::Array2;
use rescatter::boxes::{batched_nms, batched_soft_nms};
use rescatter::head::ImageMeta;

use super::config::{DetectionConfig, Suppression};

/// What was found in one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Detections {
    /// In pixels of the model's input before padding, inside it.
    pub boxes: Vec<[f32; 4]>,
    /// Falling.
    pub scores: Vec<f32>,
    /// From 0, without a background.
    pub classes: Vec<u32>,
    /// Probabilities `[M, M]` over each box; empty without a mask branch.
    pub masks: Vec<Array2<f32>>,
    /// The image.
    pub meta: ImageMeta,
}

/// Scored boxes of one image before suppression.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// Inside the image.
    pub boxes: Vec<[f32; 4]>,
    /// Probabilities.
    pub scores: Vec<f32>,
    /// From 0, without a background.
    pub classes: Vec<u32>,
}

impl Candidates {
    /// Appends those of another look at the same image.
    pub fn extend(&mut self, other: Self) {
        self.boxes.extend(other.boxes);
        self.scores.extend(other.scores);
        self.classes.extend(other.classes);
    }

    /// Those that survive the suppression, class by class; the best ones, by falling score.
    pub fn suppress(&self, config: &DetectionConfig) -> Self {
        let mut kept: Vec<(usize, f32)> = match config.suppression {
            Suppression::Nms(iou) => batched_nms(&self.boxes, &self.scores, &self.classes, iou)
                .into_iter()
                .map(|i| (i, self.scores[i]))
                .collect(),
            Suppression::SoftNms(soft) => batched_soft_nms(
                &self.boxes,
                &self.scores,
                &self.classes,
                soft.decay,
                soft.min_score,
            ),
        };
        kept.truncate(config.per_image);
        Self {
            boxes: kept.iter().map(|&(i, _)| self.boxes[i]).collect(),
            scores: kept.iter().map(|&(_, score)| score).collect(),
            classes: kept.iter().map(|&(i, _)| self.classes[i]).collect(),
        }
    }
}
