//! Axis-aligned boxes on the host: `[x0, y0, x1, y1]` in pixels, x1 and y1 exclusive (no "+1"), in detectron2's vocabulary.

mod coder;
mod nms;
mod soft_nms;

pub use coder::BoxCoder;
pub(crate) use nms::survivors;
pub use nms::{batched_nms, by_falling_score, nms};
pub use soft_nms::{Decay, batched_soft_nms, soft_nms};

/// Width times height.
#[inline(always)]
pub fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

/// Area of the common part; 0 where there is none.
#[inline(always)]
pub fn intersection(a: [f32; 4], b: [f32; 4]) -> f32 {
    let width = a[2].min(b[2]) - a[0].max(b[0]);
    let height = a[3].min(b[3]) - a[1].max(b[1]);
    width.max(0.0) * height.max(0.0)
}

/// Intersection over union. Two boxes without area give NaN, which exceeds no threshold.
#[inline(always)]
pub fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let common = intersection(a, b);
    common / (area(a) + area(b) - common)
}

/// The share of `b` that lies in `region`; 0 for a box without area.
pub fn share_inside(b: [f32; 4], region: [f32; 4]) -> f32 {
    let own = area(b);
    if own > 0.0 { intersection(b, region) / own } else { 0.0 }
}

/// The part of `b` inside an image of `size` (height, width).
pub fn clip(b: [f32; 4], size: (usize, usize)) -> [f32; 4] {
    let (height, width) = (size.0 as f32, size.1 as f32);
    [
        b[0].clamp(0.0, width),
        b[1].clamp(0.0, height),
        b[2].clamp(0.0, width),
        b[3].clamp(0.0, height),
    ]
}

/// The box in the mirrored image of `width` pixels.
pub fn mirror(b: [f32; 4], width: usize) -> [f32; 4] {
    let width = width as f32;
    [width - b[2], b[1], width - b[0], b[3]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overlaps_by_hand() {
        // 2 × 2 and 2 × 2 share 1 × 1: 1 / (4 + 4 − 1).
        let (a, b) = ([0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]);
        assert_eq!(iou(a, b), 1.0 / 7.0);
        assert_eq!(share_inside(a, b), 0.25);
        assert_eq!(iou(a, [2.0, 0.0, 4.0, 2.0]), 0.0);
        assert!(iou([1.0; 4], [1.0; 4]).is_nan());
        assert_eq!(share_inside([1.0; 4], a), 0.0);
        assert_eq!(clip([-1.0, 2.0, 9.0, 9.0], (4, 6)), [0.0, 2.0, 6.0, 4.0]);
        assert_eq!(mirror([1.0, 2.0, 3.0, 4.0], 10), [7.0, 2.0, 9.0, 4.0]);
    }

    /// A box with sides of at least one pixel.
    pub(super) fn any_box() -> impl Strategy<Value = [f32; 4]> {
        (0f32..50.0, 0f32..50.0, 1f32..40.0, 1f32..40.0)
            .prop_map(|(x, y, w, h)| [x, y, x + w, y + h])
    }

    proptest! {
        #[test]
        fn the_overlap_is_symmetric_and_at_most_one(a in any_box(), b in any_box()) {
            prop_assert_eq!(iou(a, b), iou(b, a));
            prop_assert!((0.0..=1.0).contains(&iou(a, b)));
            prop_assert!((iou(a, a) - 1.0).abs() < 1e-6);
            // Mirroring both keeps it, up to the rounding of the coordinates.
            let mirrored = iou(mirror(a, 100), mirror(b, 100));
            prop_assert!((mirrored - iou(a, b)).abs() < 1e-4);
        }

        #[test]
        fn a_clipped_box_lies_in_the_image(b in any_box()) {
            let c = clip(b, (30, 20));
            prop_assert!(c[0] >= 0.0 && c[2] <= 20.0 && c[1] >= 0.0 && c[3] <= 30.0);
            prop_assert_eq!(clip(c, (30, 20)), c);
        }
    }
}
