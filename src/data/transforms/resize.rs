//! Resizing: images bilinear with half-pixel centres and no antialiasing (OpenCV's `INTER_LINEAR`), labels nearest
//! (OpenCV's `INTER_NEAREST`: ⌊j · n / m⌋).

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use super::{Frame, LabelMap};
use crate::{Error, Result};

/// How the new size follows from the old one (mmsegmentation's `Resize` and `RandomResize`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// Height and width at factor 1; `None` is the image's own.
    pub(super) size: Option<[usize; 2]>,
    pub(super) keep_ratio: bool,
    pub(super) min_side: Option<usize>,
    pub(super) multiple_of: Option<usize>,
}

impl Rule {
    /// The new height and width.
    ///
    /// With `keep_ratio` the longer side fits the larger of the two numbers and the shorter side the smaller one, whatever
    /// the image's orientation, as in mmcv's `rescale_size`.
    pub(super) fn target(&self, (height, width): (usize, usize), factor: f64) -> (usize, usize) {
        let [base_h, base_w] = self.size.unwrap_or([height, width]);
        let (goal_h, goal_w) = ((base_h as f64 * factor).floor(), (base_w as f64 * factor).floor());
        let (h, w) = (height as f64, width as f64);
        let mut scale = [goal_h / h, goal_w / w];
        if self.keep_ratio {
            scale = [(goal_h.max(goal_w) / h.max(w)).min(goal_h.min(goal_w) / h.min(w)); 2];
        }
        let mut size = [(h * scale[0] + 0.5).floor(), (w * scale[1] + 0.5).floor()];
        if let Some(least) = self.min_side.map(|side| side as f64)
            && size[0].min(size[1]) < least
        {
            let up = if self.keep_ratio {
                [least / h.min(w); 2]
            } else {
                [least / size[0].min(size[1]); 2]
            };
            let from = if self.keep_ratio { [h, w] } else { size };
            size = [(from[0] * up[0]).round(), (from[1] * up[1]).round()];
        }
        let finish = |side: f64| match self.multiple_of {
            Some(step) => ((side / step as f64).round() as usize).max(1) * step,
            None => (side as usize).max(1),
        };
        (finish(size[0]), finish(size[1]))
    }
}

/// The new height and width whose shorter side is `edge`, unless the longer one would exceed `max_size`, which it then is
/// (detectron2's `ResizeShortestEdge`).
pub(super) fn shortest_edge(
    (height, width): (usize, usize),
    edge: usize,
    max_size: usize,
) -> (usize, usize) {
    let (short, long) = (height.min(width) as f64, height.max(width) as f64);
    let mut other = long * (edge as f64 / short);
    let mut least = edge as f64;
    if other > max_size as f64 {
        least *= max_size as f64 / other;
        other = max_size as f64;
    }
    let (least, other) = ((least + 0.5) as usize, (other + 0.5) as usize);
    let (least, other) = (least.max(1), other.max(1));
    if height < width { (least, other) } else { (other, least) }
}

/// Resizes image and label to `(height, width)`.
pub(super) fn resize(frame: &mut Frame, size: (usize, usize)) -> Result<()> {
    if frame.size() == size {
        return Ok(());
    }
    let (height, width) = frame.size();
    frame.geometry.scale(size.1 as f64 / width as f64, size.0 as f64 / height as f64);
    frame.image = bilinear(
        &frame.image,
        [0.0, 0.0, f64::from(frame.image.width()), f64::from(frame.image.height())],
        size,
    )?;
    frame.label = frame.label.take().map(|label| nearest(&label, size));
    Ok(())
}

/// The part `[left, top, width, height]` of an image, resized to `(height, width)`.
pub(super) fn bilinear(
    image: &RgbImage,
    part: [f64; 4],
    (height, width): (usize, usize),
) -> Result<RgbImage> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::usage(format!("cannot resize an image to {width}×{height}: {e}"))
    };
    // Typed images: the dynamic ones instantiate every filter for every pixel type, half of this crate's code.
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
        .map_err(|e| failed(&e))?;
    let mut resized = RgbImage::new(width as u32, height as u32);
    let mut target = TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut resized)
        .map_err(|e| failed(&e))?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Interpolation(FilterType::Bilinear))
        .crop(part[0], part[1], part[2], part[3]);
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
    Ok(resized)
}

pub(super) fn nearest(label: &LabelMap, (height, width): (usize, usize)) -> LabelMap {
    let (rows, columns) = label.dim();
    let column: Vec<usize> = (0..width).map(|j| j * columns / width).collect();
    let mut values = Vec::with_capacity(height * width);
    for i in 0..height {
        let row = label.row(i * rows / height);
        values.extend(column.iter().map(|j| row[*j]));
    }
    let mut resized = LabelMap::zeros((height, width));
    resized.iter_mut().zip(values).for_each(|(to, from)| *to = from);
    resized
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeping(size: Option<[usize; 2]>) -> Rule {
        Rule { size, keep_ratio: true, min_side: None, multiple_of: None }
    }

    #[test]
    fn sizes_follow_mmcv() {
        // 512 × 2048 as in the ADE20K recipe: a 480 × 640 image grows by 512 / 480.
        assert_eq!(keeping(Some([512, 2048])).target((480, 640), 1.0), (512, 683));
        // The portrait grows alike: long side against 2048, short side against 512.
        assert_eq!(keeping(Some([512, 2048])).target((640, 480), 1.0), (683, 512));
        // A panorama is limited by its long side: 2048 / 4000.
        assert_eq!(keeping(Some([512, 2048])).target((400, 4000), 1.0), (205, 2048));
        assert_eq!(keeping(None).target((100, 201), 0.5), (50, 100));
        assert_eq!(
            Rule { keep_ratio: false, ..keeping(Some([90, 70])) }.target((480, 640), 2.0),
            (180, 140)
        );
    }

    #[test]
    fn the_shortest_edge_follows_detectron2() {
        assert_eq!(shortest_edge((480, 640), 800, 1333), (800, 1067));
        assert_eq!(shortest_edge((640, 480), 800, 1333), (1067, 800));
        // 427 × 640 at 800 would be 1199 wide; 300 × 640 would be 1707 and is limited.
        assert_eq!(shortest_edge((300, 640), 800, 1333), (625, 1333));
        assert_eq!(shortest_edge((500, 500), 64, 64), (64, 64));
    }

    #[test]
    fn the_shorter_side_and_the_multiple_are_kept() {
        let least = Rule { min_side: Some(252), ..keeping(None) };
        assert_eq!(least.target((360, 480), 0.5), (252, 336));
        let multiple = Rule { multiple_of: Some(14), ..keeping(None) };
        assert_eq!(multiple.target((360, 480), 1.0), (364, 476));
    }

    #[test]
    fn labels_take_the_nearest_value_as_opencv_does() {
        let label = LabelMap::from_shape_vec((1, 5), vec![0, 1, 2, 3, 4]).unwrap();
        // ⌊j · 5 / 3⌋ = 0, 1, 3.
        assert_eq!(nearest(&label, (1, 3)).into_raw_vec_and_offset().0, [0, 1, 3]);
    }

    #[test]
    fn images_are_interpolated_without_antialiasing() {
        // Every fourth pixel of a 1 × 8 image is white; halving reads the midpoints of the pairs (0,1), (2,3), …
        let image =
            RgbImage::from_fn(8, 1, |x, _| image::Rgb([if x % 4 == 0 { 255 } else { 0 }; 3]));
        let half = bilinear(&image, [0.0, 0.0, 8.0, 1.0], (1, 2)).unwrap();
        // 8 → 2: centres at 1.5 and 5.5, between pixels 1|2 and 5|6, which are black; antialiasing would give 64.
        assert_eq!(half.as_raw(), &[0; 6]);
    }
}
