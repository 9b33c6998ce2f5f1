//! A crop of random area and shape, resized (Szegedy et al., arXiv 1409.4842; torchvision's `RandomResizedCrop`).

use ndarray::s;

use super::{Frame, resize};
use crate::Result;
use crate::rng::Stream;

const ATTEMPTS: usize = 10;
const SHAPES: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// Crops a share in `scale` of the area and resizes it to `size` (height, width).
pub(super) fn apply(
    frame: &mut Frame,
    size: [usize; 2],
    scale: [f64; 2],
    stream: &mut Stream,
) -> Result<()> {
    let [top, left, height, width] = draw(frame.size(), scale, stream);
    let part = [left as f64, top as f64, width as f64, height as f64];
    frame.image = resize::bilinear(&frame.image, part, (size[0], size[1]))?;
    frame.geometry.shift(part[0], part[1]);
    frame.geometry.scale(size[1] as f64 / part[2], size[0] as f64 / part[3]);
    frame.label = frame.label.take().map(|label| {
        let part = label.slice(s![top..top + height, left..left + width]).to_owned();
        resize::nearest(&part, (size[0], size[1]))
    });
    Ok(())
}

/// Top, left, height, width.
fn draw((height, width): (usize, usize), scale: [f64; 2], stream: &mut Stream) -> [usize; 4] {
    let area = (height * width) as f64;
    for _ in 0..ATTEMPTS {
        let target = area * stream.range(scale[0], scale[1]);
        let shape = stream.range(SHAPES[0].ln(), SHAPES[1].ln()).exp();
        let w = (target * shape).sqrt().round() as usize;
        let h = (target / shape).sqrt().round() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return [stream.below(height - h + 1), stream.below(width - w + 1), h, w];
        }
    }
    // The middle, as close to the image's shape as allowed.
    let shape = (width as f64 / height as f64).clamp(SHAPES[0], SHAPES[1]);
    let w = width.min((height as f64 * shape).round() as usize).max(1);
    let h = height.min((width as f64 / shape).round() as usize).max(1);
    [(height - h) / 2, (width - w) / 2, h, w]
}
