//! From scored anchors to proposals.

use candle_core::{Device, Result};
use rayon::prelude::*;
use rescatter::boxes::{BoxCoder, by_falling_score, clip};
use rescatter::ops;

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

/// One level: logits, deltas and anchors of one image of `size` (height, width).
#[derive(Debug, Clone, Copy)]
pub struct Level<'a> {
    /// One per anchor.
    pub logits: &'a [f32],
    /// One per anchor.
    pub deltas: &'a [[f32; 4]],
    /// In pixels.
    pub anchors: &'a [[f32; 4]],
    /// Of the image.
    pub size: (usize, usize),
}

/// For every image the best of each of its levels, decoded, clipped to the image and suppressed level by level; the best of all
/// levels together. The suppression, of all images at once, is done by `device`.
///
/// # Errors
/// If the device fails.
pub fn propose(
    images: &[Vec<Level>],
    options: &ProposalOptions,
    device: &Device,
) -> Result<Vec<ProposalSet>> {
    let levels: Vec<&Level> = images.iter().flatten().collect();
    let best: Vec<ProposalSet> =
        levels.into_par_iter().map(|level| best_of_level(level, options)).collect();
    let lists: Vec<&[[f32; 4]]> = best.iter().map(|set| set.boxes.as_slice()).collect();
    let mut alive = ops::nms(&lists, options.nms, device)?.into_iter().zip(&best);
    let of_image = |levels: &Vec<Level>| {
        let mut all = ProposalSet::default();
        for (alive, set) in alive.by_ref().take(levels.len()) {
            let kept = (0..alive.len()).filter(|&i| alive[i]);
            all.extend(set, kept);
        }
        let mut order = by_falling_score(&all.logits);
        order.truncate(options.post_nms);
        let mut found = ProposalSet::default();
        found.extend(&all, order.into_iter());
        found
    };
    Ok(images.iter().map(of_image).collect())
}

/// Before suppression, by falling logit.
fn best_of_level(level: &Level, options: &ProposalOptions) -> ProposalSet {
    let mut found = ProposalSet::default();
    for i in top(level.logits, options.pre_nms) {
        let b = clip(BoxCoder::PLAIN.decode(level.anchors[i], level.deltas[i]), level.size);
        let side = (b[2] - b[0]).min(b[3] - b[1]);
        // A box that is no number fails both.
        if side > 0.0 && side >= options.min_size {
            found.boxes.push(b);
            found.logits.push(level.logits[i]);
        }
    }
    found
}

impl ProposalSet {
    /// Appends those of `other` that have these numbers.
    fn extend(&mut self, other: &Self, numbers: impl Iterator<Item = usize> + Clone) {
        self.boxes.extend(numbers.clone().map(|i| other.boxes[i]));
        self.logits.extend(numbers.map(|i| other.logits[i]));
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
        let level = |logits: &'static [f32]| Level {
            logits,
            deltas: &[[0.0; 4]; 4],
            anchors: &anchors,
            size: (16, 16),
        };
        // Neither levels nor images suppress each other.
        let images = [
            vec![level(&[3.0, 2.0, 1.0, 0.0])],
            vec![level(&[3.0, 2.0, 1.0, 0.0]), level(&[0.0, 5.0, 0.5, 1.0])],
        ];
        let found = propose(&images, &options, &Device::Cpu).unwrap();
        let [one, two] = found.as_slice() else { panic!("there are two images") };
        assert_eq!(*one, ProposalSet { boxes: vec![anchors[0]], logits: vec![3.0] });
        assert_eq!((&two.boxes, &two.logits), (&vec![anchors[1], anchors[0]], &vec![5.0, 3.0]));
    }
}
