//! RoIAlign of a bitmap that is kept for a part of its image only: the targets of a mask head.

use super::{Axis, RoiAlign};
use crate::data::InstanceMask;

/// The bitmap inside a box, as `size × size` means of bilinear samples in [0, 1] (adaptive sampling, scale 1): what
/// [`super::roi_align`] gives of the whole image of `image` (height, width) pixels.
pub fn roi_align_bitmap(
    mask: &InstanceMask,
    bounds: [f32; 4],
    size: usize,
    image: (usize, usize),
) -> Vec<f32> {
    let options = RoiAlign { size, scale: 1.0, sampling_ratio: 0, gradient_scale: 1.0 };
    let mut out = vec![0.0; size * size];
    if image.0 * image.1 == 0 || !bounds.iter().all(|v| v.abs() < super::FARTHEST) {
        return out;
    }
    let rows = Axis::new(bounds[1], bounds[3], image.0, options);
    let columns = Axis::new(bounds[0], bounds[2], image.1, options);
    let (height, width) = mask.bitmap.dim();
    let (top, left) = mask.origin;
    let mut line = vec![0.0; size];
    for y in rows.span().start.max(top)..rows.span().end.min(top + height) {
        let pixels = mask.bitmap.row(y - top);
        for (j, value) in line.iter_mut().enumerate() {
            let (first, weights) = columns.bin(j);
            let seen =
                weights.iter().zip(first..).filter(|(_, x)| (left..left + width).contains(x));
            *value = seen.filter(|(_, x)| pixels[x - left] > 0).map(|(weight, _)| weight).sum();
        }
        for (i, out) in out.chunks_exact_mut(size).enumerate() {
            let weight = rows.weight(i, y);
            if weight != 0.0 {
                out.iter_mut().zip(&line).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
    out
}
