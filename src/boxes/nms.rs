//! Greedy non-maximum suppression.

use rayon::prelude::*;

use super::area;

/// Indices by falling score; equal scores in the order of the indices.
pub fn by_falling_score(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes −0 and +0 equal.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    order
}

/// Indices of the boxes that no better one overlaps by more than `threshold`, by falling score. Equal scores are taken in
/// the order of the indices.
///
/// # Panics
/// If there are fewer scores than boxes.
pub fn nms(boxes: &[[f32; 4]], scores: &[f32], threshold: f32) -> Vec<usize> {
    suppress(boxes, by_falling_score(&scores[..boxes.len()]), threshold)
}

/// [`nms`] where only boxes of one group remove each other; by falling score over all groups, equal scores in the order of
/// the indices.
///
/// # Panics
/// If there are fewer scores or groups than boxes.
pub fn batched_nms(
    boxes: &[[f32; 4]],
    scores: &[f32],
    groups: &[u32],
    threshold: f32,
) -> Vec<usize> {
    let order = by_falling_score(&scores[..boxes.len()]);
    let kept: Vec<Vec<usize>> =
        grouped(&order, groups).into_par_iter().map(|g| suppress(boxes, g, threshold)).collect();
    let mut alive = vec![false; boxes.len()];
    kept.iter().flatten().for_each(|&i| alive[i] = true);
    order.into_iter().filter(|&i| alive[i]).collect()
}

/// The members of each group, in the order in which `order` has them.
pub(super) fn grouped(order: &[usize], groups: &[u32]) -> Vec<Vec<usize>> {
    let mut sorted = order.to_vec();
    sorted.sort_by_key(|&i| groups[i]);
    sorted.chunk_by(|&a, &b| groups[a] == groups[b]).map(<[usize]>::to_vec).collect()
}

/// The members of `order` (best first) that survive.
fn suppress(boxes: &[[f32; 4]], order: Vec<usize>, threshold: f32) -> Vec<usize> {
    let alive = survivors(order.iter().map(|&i| boxes[i]), threshold);
    order.into_iter().zip(alive).filter_map(|(index, alive)| alive.then_some(index)).collect()
}

/// Which boxes (best first) survive.
pub(crate) fn survivors(
    boxes: impl ExactSizeIterator<Item = [f32; 4]> + Clone,
    threshold: f32,
) -> Vec<bool> {
    let count = boxes.len();
    let mut rest = Columns::new(boxes);
    for at in 0..count {
        if !rest.dead[at] {
            rest.kill_overlapping(at, threshold);
        }
    }
    rest.dead.into_iter().map(|dead| !dead).collect()
}

/// Boxes coordinate by coordinate, so that the overlaps of one with all others vectorise.
struct Columns {
    x0: Vec<f32>,
    y0: Vec<f32>,
    x1: Vec<f32>,
    y1: Vec<f32>,
    area: Vec<f32>,
    dead: Vec<bool>,
}

impl Columns {
    fn new(boxes: impl Iterator<Item = [f32; 4]> + Clone) -> Self {
        let column = |k: usize| boxes.clone().map(|b| b[k]).collect::<Vec<f32>>();
        let areas: Vec<f32> = boxes.clone().map(area).collect();
        let dead = vec![false; areas.len()];
        Self { x0: column(0), y0: column(1), x1: column(2), y1: column(3), area: areas, dead }
    }

    /// Marks what follows `at` and overlaps it by more than `threshold`.
    fn kill_overlapping(&mut self, at: usize, threshold: f32) {
        let (a, own) = ([self.x0[at], self.y0[at], self.x1[at], self.y1[at]], self.area[at]);
        let from = at + 1;
        let others = self.x0[from..].iter().zip(&self.y0[from..]).zip(&self.x1[from..]);
        let others = others.zip(&self.y1[from..]).zip(&self.area[from..]);
        crate::ops::vector::vectorised(
            #[inline(always)]
            || {
                for (dead, ((((&x0, &y0), &x1), &y1), &area)) in
                    self.dead[from..].iter_mut().zip(others)
                {
                    let width = (a[2].min(x1) - a[0].max(x0)).max(0.0);
                    let height = (a[3].min(y1) - a[1].max(y0)).max(0.0);
                    let common = width * height;
                    *dead |= common / (own + area - common) > threshold;
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::iou;
    use super::super::tests::any_box;
    use super::*;

    /// The definition, without order or columns.
    fn slow(boxes: &[[f32; 4]], scores: &[f32], threshold: f32) -> Vec<usize> {
        let mut kept: Vec<usize> = Vec::new();
        for i in by_falling_score(scores) {
            if !kept.iter().any(|&k| iou(boxes[k], boxes[i]) > threshold) {
                kept.push(i);
            }
        }
        kept
    }

    #[test]
    fn equal_scores_go_by_index_and_boxes_without_area_stay() {
        let boxes = [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0], [2.0; 4], [2.0; 4]];
        assert_eq!(nms(&boxes, &[0.5, 0.5, 0.9, 0.9], 0.5), [2, 3, 0]);
        assert_eq!(batched_nms(&boxes, &[0.5, 0.5, 0.1, 0.0], &[7, 3, 3, 3], 0.5), [0, 1, 2, 3]);
        assert!(nms(&[], &[], 0.5).is_empty());
    }

    proptest! {
        #[test]
        fn it_is_the_definition(
            list in prop::collection::vec((any_box(), 0u8..9, 0u32..3), 0..40),
            threshold in 0.1f32..0.9,
        ) {
            let boxes: Vec<_> = list.iter().map(|(b, _, _)| *b).collect();
            let scores: Vec<_> = list.iter().map(|(_, s, _)| f32::from(*s)).collect();
            let groups: Vec<_> = list.iter().map(|(_, _, g)| *g).collect();
            prop_assert_eq!(nms(&boxes, &scores, threshold), slow(&boxes, &scores, threshold));
            // Groups moved so far apart that nothing overlaps across them.
            let apart: Vec<_> = boxes.iter().zip(&groups).map(|(b, g)| b.map(|v| v + 128.0 * *g as f32)).collect();
            prop_assert_eq!(batched_nms(&apart, &scores, &groups, threshold), slow(&apart, &scores, threshold));
        }
    }
}
