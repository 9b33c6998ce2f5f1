//! Masks as runs: COCO's run-length encoding, column by column, zeros first.

use hotcoco::mask as codec;
use ndarray::{Array2, ArrayView2};

use crate::data::InstanceMask;

/// A reason that a mask is refused, for a message that names file and object.
pub type Refused = String;

/// A binary mask of `height × width` pixels as runs down its columns, zeros and ones in turn, zeros first.
///
/// The runs always add up to the number of pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Rle(pub(crate) hotcoco::Rle);

/// How masks are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Pixels of any of them.
    Union,
    /// Pixels of all of them.
    Intersection,
}

impl Rle {
    /// A mask from its runs ("uncompressed" in COCO's files).
    ///
    /// # Errors
    /// If the runs do not add up to `height · width`.
    pub fn from_counts((height, width): (u32, u32), counts: Vec<u32>) -> Result<Self, Refused> {
        let sum: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let pixels = u64::from(height) * u64::from(width);
        if sum != pixels || pixels > u64::from(u32::MAX) {
            return Err(format!(
                "the runs of its mask add up to {sum}, but {width}×{height} pixels are {pixels}"
            ));
        }
        Ok(Self(hotcoco::Rle { h: height, w: width, counts }))
    }

    /// A mask from COCO's string of runs ("compressed").
    ///
    /// # Errors
    /// If the string has characters that none has, or its runs do not add up to `height · width`.
    pub fn from_compressed((height, width): (u32, u32), counts: &str) -> Result<Self, Refused> {
        if let Some(wrong) = counts.chars().find(|c| !('0'..='o').contains(c)) {
            return Err(format!(
                "the string of its mask holds {wrong:?}, which no such string does"
            ));
        }
        let decoded = codec::rle_from_string(counts, height, width)
            .map_err(|e| format!("the string of its mask cannot be decoded: {e}"))?;
        Self::from_counts((height, width), decoded.counts)
    }

    /// The union of polygons [x0, y0, x1, y1, …] in pixels, rasterised as pycocotools' `frPyObjects` and `merge` do.
    ///
    /// # Errors
    /// If a polygon has fewer than three corners, an odd number of values, or a value that is no number.
    pub fn from_polygons(
        (height, width): (u32, u32),
        polygons: &[Vec<f64>],
    ) -> Result<Self, Refused> {
        polygons.iter().try_for_each(|polygon| check_polygon(polygon))?;
        codec::fr_polys(polygons, height, width).map(Self).map_err(|e| e.to_string())
    }

    /// The mask of a bitmap; every value but 0 is inside.
    ///
    /// # Errors
    /// If it has 2³² pixels or more.
    pub fn from_bitmap(bitmap: ArrayView2<u8>) -> Result<Self, Refused> {
        let (height, width) = bitmap.dim();
        let columns: Vec<u8> = bitmap.t().iter().copied().collect();
        codec::encode(&columns, height as u32, width as u32).map(Self).map_err(|e| e.to_string())
    }

    /// The mask of an object in an image of `size` (height, width), read off its part of the image alone.
    ///
    /// # Errors
    /// If the part does not lie in the image, or that has 2³² pixels or more.
    pub fn from_instance(mask: &InstanceMask, size: (u32, u32)) -> Result<Self, Refused> {
        let ((top, left), (rows, columns)) = (mask.origin, mask.bitmap.dim());
        let (height, width) = (size.0 as usize, size.1 as usize);
        let pixels = u32::try_from(height * width).map_err(|_| "the image is too large")?;
        if rows * columns > 0 && (top + rows > height || left + columns > width) {
            return Err(format!("a mask of {rows} rows and {columns} columns leaves its image"));
        }
        // Where the value changes, first from 0 to 1.
        let mut changes: Vec<u32> = Vec::new();
        for (x, column) in mask.bitmap.columns().into_iter().enumerate() {
            let start = (left + x) * height + top;
            for (y, value) in column.iter().enumerate() {
                if (*value > 0) != (changes.len() % 2 == 1) {
                    changes.push((start + y) as u32);
                }
            }
            // What lies below the part is outside; with no room there, the next column may go on.
            if changes.len() % 2 == 1 && (rows < height || x + 1 == columns) {
                changes.push((start + rows) as u32);
            }
        }
        changes.push(pixels);
        let before = std::iter::once(&0).chain(&changes);
        let counts = changes.iter().zip(before).map(|(end, start)| end - start).collect::<Vec<_>>();
        // A mask that reaches the last pixel has no zeros after it.
        let ends = counts.len() > 1 && counts.last() == Some(&0);
        let counts = if ends { counts[..counts.len() - 1].to_vec() } else { counts };
        Self::from_counts(size, counts)
    }

    /// 1 inside, 0 outside.
    pub fn to_bitmap(&self) -> Array2<u8> {
        let (height, width) = self.size();
        let columns = codec::decode(&self.0);
        Array2::from_shape_fn((height as usize, width as usize), |(y, x)| {
            columns[x * height as usize + y]
        })
    }

    /// Masks of one size joined.
    ///
    /// # Errors
    /// If there is none, or their sizes differ.
    pub fn merge(masks: &[Rle], how: Merge) -> Result<Self, Refused> {
        let plain: Vec<hotcoco::Rle> = masks.iter().map(|mask| mask.0.clone()).collect();
        if plain.is_empty() {
            return Err("there are no masks to merge".into());
        }
        codec::merge(&plain, how == Merge::Intersection).map(Self).map_err(|e| e.to_string())
    }

    /// COCO's string of the runs.
    pub fn to_compressed(&self) -> String {
        codec::rle_to_string(&self.0)
    }

    /// The runs, zeros first.
    pub fn counts(&self) -> &[u32] {
        &self.0.counts
    }

    /// Height and width.
    pub fn size(&self) -> (u32, u32) {
        (self.0.h, self.0.w)
    }

    /// Number of pixels inside.
    pub fn area(&self) -> u64 {
        codec::area(&self.0)
    }

    /// (x, y, width, height) of the smallest box around the pixels; zeros where there are none.
    pub fn bbox(&self) -> [f64; 4] {
        codec::to_bbox(&self.0)
    }
}

/// Whether a polygon can be rasterised.
pub(super) fn check_polygon(polygon: &[f64]) -> Result<(), Refused> {
    if polygon.len() < 6 || !polygon.len().is_multiple_of(2) {
        return Err(format!(
            "a polygon has {} values; three corners or more are needed, two values each",
            polygon.len()
        ));
    }
    match polygon.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("a polygon holds {value}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{array, s};

    use super::*;

    #[test]
    fn a_part_of_an_image_has_the_runs_of_the_whole() {
        // In the middle, the whole height, the last pixel, the first one, everything, nothing.
        let cases = [
            ((1, 2), array![[1, 0, 1], [1, 1, 0]]),
            ((0, 1), array![[1, 1], [0, 1], [1, 1], [1, 0]]),
            ((3, 4), array![[1]]),
            ((0, 0), array![[1, 0]]),
            ((0, 0), Array2::ones((4, 5))),
            ((2, 2), array![[0, 0]]),
        ];
        for (origin, bitmap) in cases {
            let (height, width) = bitmap.dim();
            let mut whole = Array2::<u8>::zeros((4, 5));
            let part = s![origin.0..origin.0 + height, origin.1..origin.1 + width];
            whole.slice_mut(part).assign(&bitmap);
            let mask = InstanceMask { origin, bitmap };
            let found = Rle::from_instance(&mask, (4, 5)).unwrap();
            assert_eq!(found.to_bitmap(), whole);
            assert_eq!(found, Rle::from_bitmap(whole.view()).unwrap(), "{origin:?}");
        }
        let outside = InstanceMask { origin: (3, 0), bitmap: Array2::ones((2, 1)) };
        assert!(Rle::from_instance(&outside, (4, 5)).is_err());
    }
}
