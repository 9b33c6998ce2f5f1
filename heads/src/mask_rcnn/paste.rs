//! From the mask of a box to pixels of an image (detectron2's `paste_masks_in_image`).

use ndarray::Array2;
use rescatter::data::InstanceMask;

/// The part of an image that the mask of a box can reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Pasted {
    /// Row and column of its first pixel.
    pub origin: (usize, usize),
    /// The probability of every pixel; 0 everywhere else.
    pub soft: Array2<f32>,
}

/// Samples `probs` `[M, M]`, which cover the box `bounds`, bilinearly at every pixel of an image of `size` (height, width),
/// with zeros around them.
pub fn paste(probs: &Array2<f32>, bounds: [f32; 4], size: (usize, usize)) -> Pasted {
    let (rows, columns) = probs.dim();
    let vertical = Axis::new(bounds[1], bounds[3], rows, size.0);
    let horizontal = Axis::new(bounds[0], bounds[2], columns, size.1);
    let at = |y: isize, x: isize| {
        let (y, x) = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        probs.get((y, x)).copied()
    };
    let soft = Array2::from_shape_fn((vertical.places.len(), horizontal.places.len()), |(y, x)| {
        let ((v, dv), (u, du)) = (vertical.places[y], horizontal.places[x]);
        let value = |y, x| at(y, x).unwrap_or(0.0);
        let above = value(v, u) * (1.0 - du) + value(v, u + 1) * du;
        let below = value(v + 1, u) * (1.0 - du) + value(v + 1, u + 1) * du;
        above * (1.0 - dv) + below * dv
    });
    Pasted { origin: (vertical.first, horizontal.first), soft }
}

impl Pasted {
    /// The pixels with a probability of at least ½.
    pub fn mask(&self) -> InstanceMask {
        InstanceMask { origin: self.origin, bitmap: self.soft.map(|p| u8::from(*p >= 0.5)) }
    }
}

/// The pixels of one axis that a box reaches.
struct Axis {
    first: usize,
    /// For each the sample before it and how far beyond that it lies.
    places: Vec<(isize, f32)>,
}

impl Axis {
    fn new(low: f32, high: f32, samples: usize, pixels: usize) -> Self {
        let place = |pixel: usize| (pixel as f32 + 0.5 - low) / (high - low) * samples as f32 - 0.5;
        // Beyond −1 and M all four neighbours are zeros; a box without extent has no place that is a number.
        let reached = |place: f32| place > -1.0 && place < samples as f32;
        let mut inside = (0..pixels).filter(|&pixel| reached(place(pixel)));
        let first = inside.next().unwrap_or(0);
        let count = usize::from(pixels > 0 && reached(place(first))) + inside.count();
        let split = |pixel: usize| {
            let place = place(pixel);
            (place.floor() as isize, place - place.floor())
        };
        Self { first, places: (first..first + count).map(split).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mask_covers_its_box() {
        // 2 × 2 samples over 4 × 4 pixels from (2, 1): places −¼, ¼, ¾, 1¼ inside, ±¾ more reach the border.
        let pasted = paste(&Array2::from_elem((2, 2), 1.0), [2.0, 1.0, 6.0, 5.0], (8, 8));
        assert_eq!((pasted.origin, pasted.soft.dim()), ((0, 1), (6, 6)));
        assert_eq!(pasted.soft[[2, 2]], 1.0);
        // A quarter outside at the edge, and again at the corner: ¾ and ¾².
        assert_eq!((pasted.soft[[1, 2]], pasted.soft[[1, 1]]), (0.75, 0.5625));
        let mask = pasted.mask();
        let rows = |y: usize| (0..6).map(|x| mask.bitmap[[y, x]]).collect::<Vec<_>>();
        assert_eq!((rows(0), rows(1)), (vec![0; 6], vec![0, 1, 1, 1, 1, 0]));
    }

    #[test]
    fn boxes_at_and_beyond_the_border_are_cut() {
        let probs = Array2::from_elem((4, 4), 1.0);
        let pasted = paste(&probs, [-4.0, -4.0, 4.0, 4.0], (6, 3));
        assert_eq!((pasted.origin, pasted.soft.dim()), ((0, 0), (5, 3)));
        assert_eq!(paste(&probs, [50.0, 50.0, 60.0, 60.0], (6, 3)).soft.len(), 0);
        assert_eq!(paste(&probs, [1.0, 1.0, 1.0, 5.0], (6, 3)).soft.len(), 0);
    }
}
