//! Boxes as corrections of other boxes (R-CNN, arXiv 1311.2524, appendix C; detectron2's `Box2BoxTransform`).

/// The largest factor by which a correction may scale a side is 1000 / 16.
const LARGEST_SCALE: f32 = 62.5;

/// Encodes a target box as four deltas on a source box, and decodes them again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoxCoder {
    /// Factors on the deltas of x, y, width and height.
    pub weights: [f32; 4],
}

/// Centre and size: (x, y, width, height).
#[inline(always)]
fn centred(b: [f32; 4]) -> [f32; 4] {
    let (w, h) = (b[2] - b[0], b[3] - b[1]);
    [b[0] + 0.5 * w, b[1] + 0.5 * h, w, h]
}

impl BoxCoder {
    /// With all weights 1, as a region proposal network has them.
    pub const PLAIN: Self = Self { weights: [1.0; 4] };

    /// The deltas that turn `source` into `target`: (w_x·Δx/w, w_y·Δy/h, w_w·ln(w′/w), w_h·ln(h′/h)). Both boxes must have an
    /// area.
    pub fn encode(&self, source: [f32; 4], target: [f32; 4]) -> [f32; 4] {
        let ([sx, sy, sw, sh], [tx, ty, tw, th]) = (centred(source), centred(target));
        let [wx, wy, ww, wh] = self.weights;
        [(tx - sx) / sw * wx, (ty - sy) / sh * wy, (tw / sw).ln() * ww, (th / sh).ln() * wh]
    }

    /// The box that `deltas` make of `source`. The growth of a side is limited to a factor of 1000 / 16.
    pub fn decode(&self, source: [f32; 4], deltas: [f32; 4]) -> [f32; 4] {
        let [x, y, w, h] = centred(source);
        let [wx, wy, ww, wh] = self.weights;
        let (x, y) = (x + deltas[0] / wx * w, y + deltas[1] / wy * h);
        let limit = Self::largest_log_scale();
        let half_width = 0.5 * (deltas[2] / ww).min(limit).exp() * w;
        let half_height = 0.5 * (deltas[3] / wh).min(limit).exp() * h;
        [x - half_width, y - half_height, x + half_width, y + half_height]
    }

    /// ln(1000 / 16), the limit on the (unweighted) deltas of width and height.
    pub fn largest_log_scale() -> f32 {
        LARGEST_SCALE.ln()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::any_box;
    use super::*;

    #[test]
    fn a_shift_and_a_doubling_by_hand() {
        // 4 × 2 at the origin → shifted by half its width and a whole height, twice as wide.
        let coder = BoxCoder { weights: [10.0, 10.0, 5.0, 5.0] };
        let deltas = coder.encode([0.0, 0.0, 4.0, 2.0], [0.0, 2.0, 8.0, 4.0]);
        assert_eq!(deltas, [5.0, 10.0, 5.0 * 2f32.ln(), 0.0]);
        // Ever larger deltas stop at 62.5 times the side.
        let huge = BoxCoder::PLAIN.decode([0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 99.0, 0.0]);
        assert!((huge[2] - huge[0] - 125.0).abs() < 1e-3, "{huge:?}");
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(source in any_box(), target in any_box()) {
            let coder = BoxCoder { weights: [20.0, 20.0, 10.0, 10.0] };
            let back = coder.decode(source, coder.encode(source, target));
            for (a, b) in back.iter().zip(target) {
                prop_assert!((a - b).abs() < 1e-3, "{back:?} for {target:?}");
            }
        }
    }
}
