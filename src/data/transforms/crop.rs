//! Crops of a fixed size; a smaller image stays as it is on that side.

use ndarray::s;

use super::{Frame, LabelMap};
use crate::rng::Stream;

/// How often a crop is redrawn for the sake of `cat_max_ratio`.
const ATTEMPTS: usize = 10;

/// Top, left, height, width.
type Window = [usize; 4];

/// A random crop. While one class covers `cat_max_ratio` or more of the labelled pixels, or is alone, it is redrawn up to
/// ten times (mmsegmentation's `RandomCrop`).
pub(super) fn random(frame: &mut Frame, size: [usize; 2], cat_max_ratio: f64, stream: &mut Stream) {
    let full = frame.size();
    let mut window = draw(full, size, stream);
    if let Some(label) = frame.label.as_ref().filter(|_| cat_max_ratio < 1.0) {
        for _ in 0..ATTEMPTS {
            if is_varied(label, window, frame.ignore_index, cat_max_ratio) {
                break;
            }
            window = draw(full, size, stream);
        }
    }
    cut(frame, window);
}

/// The middle; along the longer side, where the frame says.
pub(super) fn center(frame: &mut Frame, size: [usize; 2]) {
    let (height, width) = frame.size();
    let (h, w) = (size[0].min(height), size[1].min(width));
    let (down, right) =
        if height > width { (frame.crop_place, 0.5) } else { (0.5, frame.crop_place) };
    let place = |slack: usize, share: f64| (slack as f64 * share) as usize;
    cut(frame, [place(height - h, down), place(width - w, right), h, w]);
}

fn draw((height, width): (usize, usize), size: [usize; 2], stream: &mut Stream) -> Window {
    let (h, w) = (size[0].min(height), size[1].min(width));
    [stream.below(height - h + 1), stream.below(width - w + 1), h, w]
}

fn is_varied(
    label: &LabelMap,
    [top, left, height, width]: Window,
    ignore: u16,
    cat_max_ratio: f64,
) -> bool {
    let part = label.slice(s![top..top + height, left..left + width]);
    let mut counts: Vec<u32> = Vec::new();
    for value in part.iter().filter(|value| **value != ignore) {
        let class = usize::from(*value);
        if class >= counts.len() {
            counts.resize(class + 1, 0);
        }
        counts[class] += 1;
    }
    let (present, total): (usize, u32) =
        (counts.iter().filter(|n| **n > 0).count(), counts.iter().sum());
    let largest = counts.iter().max().copied().unwrap_or(0);
    present > 1 && f64::from(largest) / f64::from(total) < cat_max_ratio
}

fn cut(frame: &mut Frame, [top, left, height, width]: Window) {
    if frame.size() == (height, width) {
        return;
    }
    frame.geometry.shift(left as f64, top as f64);
    let (x, y, w, h) = (left as u32, top as u32, width as u32, height as u32);
    frame.image = image::imageops::crop_imm(&frame.image, x, y, w, h).to_image();
    frame.label = frame
        .label
        .take()
        .map(|label| label.slice(s![top..top + height, left..left + width]).to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_is_varied_when_no_class_dominates_the_labelled_pixels() {
        // 4 × 4: class 0 on the left half, ignored on the right but for one pixel of class 1.
        let mut label = LabelMap::from_shape_fn((4, 4), |(_, x)| if x < 2 { 0 } else { 255 });
        assert!(!is_varied(&label, [0, 0, 4, 4], 255, 0.75), "one class alone");
        label[(0, 3)] = 1;
        assert!(!is_varied(&label, [0, 0, 4, 4], 255, 0.75), "8 of 9 labelled pixels");
        assert!(is_varied(&label, [0, 1, 2, 3], 255, 0.75), "2 of 3 labelled pixels");
        assert!(!is_varied(&label, [2, 2, 2, 2], 255, 0.75), "nothing labelled");
    }
}
