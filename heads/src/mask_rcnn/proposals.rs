//! From scored anchors to proposals.

use rayon::prelude::*;
use rescatter::boxes::{BoxCoder, by_falling_score, clip, nms};

/// How many proposals, and which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProposalOptions {
    /// Per level before suppression.
    pub pre_nms: usize,
    /// Per image after it.
    pub post_nms: usize,
    /// IoU above which the worse of two of one level goes.
    pub nms: f32,
    /// Those with a shorter side go, in pixels; those without area always do.
    pub min_size: f32,
}

/// The proposals of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProposalSet {
    /// Inside the image.
    pub boxes: Vec<[f32; 4]>,
    /// Objectness, falling.
    pub logits: Vec<f32>,
}

/// One level: logits, deltas and anchors of one image.
pub type Level<'a> = (&'a [f32], &'a [[f32; 4]], &'a [[f32; 4]]);

/// The best of every level, decoded, clipped to an image of `size` (height, width) and suppressed level by level; the best of
/// all levels together.
pub fn propose(levels: &[Level], size: (usize, usize), options: &ProposalOptions) -> ProposalSet {
    let kept: Vec<ProposalSet> =
        levels.par_iter().map(|level| of_level(level, size, options)).collect();
    let mut all = ProposalSet::default();
    for ProposalSet { boxes, logits } in kept {
        all.boxes.extend(boxes);
        all.logits.extend(logits);
    }
    let mut order = by_falling_score(&all.logits);
    order.truncate(options.post_nms);
    pick(&all, &order)
}

fn of_level(
    &(logits, deltas, anchors): &Level,
    size: (usize, usize),
    options: &ProposalOptions,
) -> ProposalSet {
    let mut found = ProposalSet::default();
    for i in top(logits, options.pre_nms) {
        let b = clip(BoxCoder::PLAIN.decode(anchors[i], deltas[i]), size);
        let side = (b[2] - b[0]).min(b[3] - b[1]);
        // A box that is no number fails both.
        if side > 0.0 && side >= options.min_size {
            found.boxes.push(b);
            found.logits.push(logits[i]);
        }
    }
    let kept = nms(&found.boxes, &found.logits, options.nms);
    pick(&found, &kept)
}

fn pick(set: &ProposalSet, order: &[usize]) -> ProposalSet {
    ProposalSet {
        boxes: order.iter().map(|&i| set.boxes[i]).collect(),
        logits: order.iter().map(|&i| set.logits[i]).collect(),
    }
}

/// The numbers of the `count` largest values, falling; equal values in their order.
fn top(values: &[f32], count: usize) -> Vec<usize> {
    let falling =
        |a: &usize, b: &usize| (values[*b] + 0.0).total_cmp(&(values[*a] + 0.0)).then(a.cmp(b));
    let mut order: Vec<usize> = (0..values.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, falling);
        order.truncate(count);
    }
    order.sort_unstable_by(falling);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_equals_in_order() {
        assert_eq!(top(&[1.0, 3.0, 2.0, 3.0, 0.0], 3), [1, 3, 2]);
        assert_eq!(top(&[0.0, -0.0, 1.0], 9), [2, 0, 1]);
        assert!(top(&[], 4).is_empty());
    }

    #[test]
    fn proposals_by_hand() {
        let options = ProposalOptions { pre_nms: 3, post_nms: 2, nms: 0.5, min_size: 1.0 };
        // The second anchor covers the first; the third has no height after clipping; the fourth is not among the best.
        let anchors = [
            [0.0, 0.0, 8.0, 8.0],
            [0.0, 0.0, 8.0, 7.0],
            [0.0, 20.0, 8.0, 30.0],
            [8.0, 8.0, 16.0, 16.0],
        ];
        let zero = [[0.0; 4]; 4];
        let level = |logits: &'static [f32]| -> Level<'static> {
            (logits, Box::leak(Box::new(zero)), Box::leak(Box::new(anchors)))
        };
        let found = propose(&[level(&[3.0, 2.0, 1.0, 0.0])], (16, 16), &options);
        assert_eq!(found, ProposalSet { boxes: vec![anchors[0]], logits: vec![3.0] });
        // Levels do not suppress each other.
        let two = [level(&[3.0, 2.0, 1.0, 0.0]), level(&[0.0, 5.0, 0.5, 1.0])];
        let found = propose(&two, (16, 16), &options);
        assert_eq!((found.boxes, found.logits), (vec![anchors[1], anchors[0]], vec![5.0, 3.0]));
    }
}
