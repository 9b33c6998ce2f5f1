//! Mirroring left and right.

use super::Frame;

/// Mirrors image and label in place.
pub(super) fn horizontal(frame: &mut Frame) {
    frame.geometry.mirror(f64::from(frame.image.width()));
    image::imageops::flip_horizontal_in_place(&mut frame.image);
    if let Some(label) = &mut frame.label {
        for mut row in label.rows_mut() {
            let width = row.len();
            for x in 0..width / 2 {
                row.swap(x, width - 1 - x);
            }
        }
    }
}
