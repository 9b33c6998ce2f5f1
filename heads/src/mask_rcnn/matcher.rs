//! Which object a box belongs to.

use rayon::prelude::*;
use rescatter::boxes::{iou, share_inside};

/// What a box is trained as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// Background.
    Negative,
    /// Neither.
    Ignored,
    /// The object that it is matched with.
    Positive,
}

/// Assigns boxes to objects by IoU (detectron2's `Matcher`).
#[derive(Debug, Clone, PartialEq)]
pub struct Matcher {
    /// Rising.
    pub thresholds: Vec<f32>,
    /// One more than thresholds: that of a best IoU below the first, from the first on, …
    pub labels: Vec<Label>,
    /// Whether the best boxes of every object are positives, however little they overlap it.
    pub low_quality: LowQuality,
}

/// What becomes of an object that no box overlaps enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowQuality {
    /// Nothing.
    Leave,
    /// The boxes with the largest IoU of all are positives (they keep their own best object).
    Match,
}

/// The result, one entry per box.
#[derive(Debug, Clone, PartialEq)]
pub struct Matches {
    /// The object with the largest IoU, the first of equals; 0 without objects.
    pub matched: Vec<usize>,
    /// The largest IoU; 0 without objects.
    pub best: Vec<f32>,
    /// What the box is.
    pub labels: Vec<Label>,
}

/// Boxes that one task handles.
const BLOCK: usize = 4096;

/// A box that lies in a crowd by more than this share of its own area is ignored.
const CROWD_SHARE: f32 = 0.5;

impl Matcher {
    /// For anchors: negatives below the first IoU, positives from the second one on and the best of every object.
    pub fn anchors([low, high]: [f32; 2]) -> Self {
        Self {
            thresholds: vec![low, high],
            labels: vec![Label::Negative, Label::Ignored, Label::Positive],
            low_quality: LowQuality::Match,
        }
    }

    /// For regions: positives from `iou` on, all others negatives.
    pub fn regions(iou: f32) -> Self {
        Self {
            thresholds: vec![iou],
            labels: vec![Label::Negative, Label::Positive],
            low_quality: LowQuality::Leave,
        }
    }

    /// Matches `boxes` with `objects`.
    pub fn assign(&self, objects: &[[f32; 4]], boxes: &[[f32; 4]]) -> Matches {
        let count = boxes.len();
        let mut found =
            Matches { matched: vec![0; count], best: vec![0.0; count], labels: Vec::new() };
        // Each object's largest IoU with the boxes of a block.
        let tops: Vec<Vec<f32>> = boxes
            .par_chunks(BLOCK)
            .zip(found.matched.par_chunks_mut(BLOCK))
            .zip(found.best.par_chunks_mut(BLOCK))
            .map(|((boxes, matched), best)| match_block(objects, boxes, matched, best))
            .collect();
        found.labels = found.best.iter().map(|&best| self.label(best)).collect();
        if self.low_quality == LowQuality::Match {
            let top = |object: usize| tops.iter().map(|block| block[object]).fold(0.0, f32::max);
            let tops: Vec<f32> = (0..objects.len()).map(top).collect();
            raise_best(objects, boxes, &tops, &mut found.labels);
        }
        found
    }

    fn label(&self, best: f32) -> Label {
        self.labels[self.thresholds.iter().filter(|&&threshold| best >= threshold).count()]
    }
}

/// Ignores what lies in a crowd.
pub fn ignore_crowds(crowds: &[[f32; 4]], boxes: &[[f32; 4]], labels: &mut [Label]) {
    if crowds.is_empty() {
        return;
    }
    labels.par_iter_mut().zip(boxes).for_each(|(label, b)| {
        if crowds.iter().any(|crowd| share_inside(*b, *crowd) > CROWD_SHARE) {
            *label = Label::Ignored;
        }
    });
}

fn match_block(
    objects: &[[f32; 4]],
    boxes: &[[f32; 4]],
    matched: &mut [usize],
    best: &mut [f32],
) -> Vec<f32> {
    let one = |(number, object): (usize, &[f32; 4])| {
        let mut top = 0f32;
        for ((b, matched), best) in boxes.iter().zip(matched.iter_mut()).zip(best.iter_mut()) {
            let overlap = iou(*object, *b);
            if overlap > *best {
                (*best, *matched) = (overlap, number);
            }
            top = top.max(overlap);
        }
        top
    };
    objects.iter().enumerate().map(one).collect()
}

/// Every box that reaches an object's largest IoU is a positive; an object that nothing overlaps has no best box.
fn raise_best(objects: &[[f32; 4]], boxes: &[[f32; 4]], tops: &[f32], labels: &mut [Label]) {
    labels.par_chunks_mut(BLOCK).zip(boxes.par_chunks(BLOCK)).for_each(|(labels, boxes)| {
        for (object, &top) in objects.iter().zip(tops).filter(|(_, top)| **top > 0.0) {
            for (label, b) in labels.iter_mut().zip(boxes) {
                if iou(*object, *b) == top {
                    *label = Label::Positive;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: [[f32; 4]; 2] = [[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]];

    #[test]
    fn labels_by_hand() {
        // IoU 1, 0.5, 0.3 with the first; 0.2 with the second, which is its best.
        let boxes = [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 5.0],
            [0.0, 0.0, 10.0, 3.0],
            [100.0, 100.0, 110.0, 102.0],
            [50.0, 50.0, 60.0, 60.0],
        ];
        use Label::{Ignored, Negative, Positive};
        let found = Matcher::anchors([0.3, 0.7]).assign(&OBJECTS, &boxes);
        assert_eq!(found.labels, [Positive, Ignored, Ignored, Positive, Negative]);
        assert_eq!(found.matched, [0, 0, 0, 1, 0]);
        let found = Matcher::regions(0.5).assign(&OBJECTS, &boxes);
        assert_eq!(found.labels, [Positive, Positive, Negative, Negative, Negative]);
        let none = Matcher::anchors([0.3, 0.7]).assign(&[], &boxes);
        assert_eq!((none.labels, none.best), (vec![Negative; 5], vec![0.0; 5]));
    }

    #[test]
    fn crowds_are_neither_positive_nor_negative() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 30.0]];
        let mut labels = [Label::Positive, Label::Negative];
        // 100 % and a third of the boxes lie in it.
        ignore_crowds(&[[0.0, 0.0, 20.0, 10.0]], &boxes, &mut labels);
        assert_eq!(labels, [Label::Ignored, Label::Negative]);
    }

    #[test]
    fn many_boxes_are_matched_as_few() {
        // More than a block; each box is matched by itself, so blocks do not matter.
        let boxes: Vec<[f32; 4]> = (0..10_000)
            .map(|i| {
                let x = (i % 997) as f32 * 0.12;
                [x, x, x + 11.0, x + 9.0]
            })
            .collect();
        let matcher = Matcher { low_quality: LowQuality::Leave, ..Matcher::anchors([0.3, 0.7]) };
        let all = matcher.assign(&OBJECTS, &boxes);
        for (i, b) in boxes.iter().enumerate().step_by(371) {
            let alone = matcher.assign(&OBJECTS, std::slice::from_ref(b));
            assert_eq!((alone.labels[0], alone.best[0]), (all.labels[i], all.best[i]));
        }
        // With low quality, the best of each object are positives.
        let best = Matcher::anchors([0.3, 2.0]).assign(&OBJECTS, &boxes);
        assert!(best.labels.contains(&Label::Positive));
    }
}
