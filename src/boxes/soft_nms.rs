//! Soft-NMS (Bodla et al., *Soft-NMS -- Improving Object Detection With One Line of Code*, ICCV 2017, arXiv 1704.04503):
//! overlapping boxes lose score instead of being removed.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::iou;
use super::nms::grouped;

/// How the score of a box falls with its overlap o with a better one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// s · (1 − o) where o exceeds the number (Eq. 2 of the paper).
    Linear(f32),
    /// s · exp(−o² / σ) for every o, with σ the number (Eq. 3).
    Gaussian(f32),
}

impl Decay {
    fn factor(self, overlap: f32) -> f32 {
        match self {
            Self::Linear(threshold) if overlap > threshold => 1.0 - overlap,
            Self::Gaussian(sigma) if overlap > 0.0 => (-overlap * overlap / sigma).exp(),
            _ => 1.0,
        }
    }
}

/// Indices and new scores of the boxes whose score stays at or above `min_score`, in the order in which they are chosen: always
/// the best of those that are left, by its score as decayed so far; the lowest index of equals.
///
/// # Panics
/// If there are fewer scores than boxes.
pub fn soft_nms(
    boxes: &[[f32; 4]],
    scores: &[f32],
    decay: Decay,
    min_score: f32,
) -> Vec<(usize, f32)> {
    choose(boxes, scores, (0..boxes.len()).collect(), decay, min_score)
}

/// [`soft_nms`] where only boxes of one group decay each other; by falling new score over all groups, equal ones in the
/// order of the indices.
///
/// # Panics
/// If there are fewer scores or groups than boxes.
pub fn batched_soft_nms(
    boxes: &[[f32; 4]],
    scores: &[f32],
    groups: &[u32],
    decay: Decay,
    min_score: f32,
) -> Vec<(usize, f32)> {
    let order: Vec<usize> = (0..boxes.len()).collect();
    let chosen = grouped(&order, groups)
        .into_par_iter()
        .flat_map_iter(|group| choose(boxes, scores, group, decay, min_score));
    let mut chosen: Vec<(usize, f32)> = chosen.collect();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen
}

fn choose(
    boxes: &[[f32; 4]],
    scores: &[f32],
    members: Vec<usize>,
    decay: Decay,
    min_score: f32,
) -> Vec<(usize, f32)> {
    let mut left: Vec<(usize, f32)> =
        members.into_iter().map(|i| (i, scores[i])).filter(|m| m.1 >= min_score).collect();
    let mut chosen = Vec::new();
    while let Some(best) = best(&left) {
        // Order is kept, so that the first of equals has the lowest index.
        let (index, score) = left.remove(best);
        chosen.push((index, score));
        left.retain_mut(|(other, score)| {
            *score *= decay.factor(iou(boxes[index], boxes[*other]));
            *score >= min_score
        });
    }
    chosen
}

/// The first place with the largest score.
fn best(left: &[(usize, f32)]) -> Option<usize> {
    (0..left.len()).reduce(|best, i| if left[i].1 > left[best].1 { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxes::{batched_nms, nms};

    const BOXES: [[f32; 4]; 3] =
        [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [20.0, 20.0, 24.0, 24.0]];

    #[test]
    fn scores_decay_by_hand() {
        // The second box is half of the first: o = 1/2.
        let linear = soft_nms(&BOXES, &[0.8, 0.6, 0.4], Decay::Linear(0.3), 0.0);
        assert_eq!(linear, [(0, 0.8), (2, 0.4), (1, 0.3)]);
        let gaussian = soft_nms(&BOXES, &[0.8, 0.6, 0.4], Decay::Gaussian(0.5), 0.0);
        assert_eq!(gaussian, [(0, 0.8), (2, 0.4), (1, 0.6 * (-0.5f32).exp())]);
        // Below the linear threshold nothing changes; what falls too low goes.
        assert_eq!(soft_nms(&BOXES, &[0.8, 0.6, 0.4], Decay::Linear(0.5), 0.0)[1], (1, 0.6));
        assert_eq!(soft_nms(&BOXES, &[0.8, 0.6, 0.4], Decay::Linear(0.3), 0.35).len(), 2);
    }

    #[test]
    fn groups_do_not_touch_each_other() {
        let scores = [0.8, 0.6, 0.7];
        let soft = batched_soft_nms(&BOXES, &scores, &[1, 2, 1], Decay::Linear(0.1), 0.0);
        assert_eq!(soft, [(0, 0.8), (2, 0.7), (1, 0.6)]);
        assert_eq!(batched_nms(&BOXES, &scores, &[1, 2, 1], 0.1), [0, 2, 1]);
    }

    #[test]
    fn with_a_high_bar_the_survivors_are_those_of_plain_suppression() {
        // Twins lose all their score: o = 1.
        let boxes = [[0.0, 0.0, 4.0, 4.0]; 3];
        let soft = soft_nms(&boxes, &[0.5, 0.9, 0.7], Decay::Linear(0.5), 0.05);
        assert_eq!(soft, [(1, 0.9)]);
        assert_eq!(nms(&boxes, &[0.5, 0.9, 0.7], 0.5), [1]);
    }
}
