//! Objects on their way from the annotation file to the model's input: they follow what was done to the image.

use hotcoco::Segmentation;
use ndarray::{Array2, s};

use super::annotations::ObjectRecord;
use super::rle::Rle;
use crate::data::transforms::Geometry;
use crate::data::{InstanceMask, Instances};

/// Boxes below this width or height are gone (detectron2's `filter_empty_instances`).
const LEAST_SIDE_PX: f64 = 1e-5;

/// Where objects come from and where they go.
pub(super) struct Journey<'a> {
    /// Height and width on disk.
    pub(super) original: (u32, u32),
    /// Height and width of the model's input, before padding.
    pub(super) input: (usize, usize),
    /// What was done to the image.
    pub(super) geometry: &'a Geometry,
    /// Whether objects carry their pixels; those without any are left out.
    pub(super) masks: bool,
}

impl Journey<'_> {
    /// The objects in pixels of the model's input. Boxes are clipped, those that vanish are left out, and a box that the
    /// input's edge cuts shrinks to what is left of its mask, as detectron2 does with `recompute_boxes`.
    ///
    /// `class_of` gives the class of a category id.
    ///
    /// # Errors
    /// If a mask is none; the message names the object.
    pub(super) fn instances(
        &self,
        objects: &[ObjectRecord],
        class_of: impl Fn(u64) -> Option<u32>,
    ) -> Result<Instances, String> {
        let mut found = Instances { size: self.input, ..Instances::default() };
        for object in objects {
            let Some((bbox, cut)) = self.bbox(object.bbox) else { continue };
            if object.iscrowd {
                found.crowds.push(bbox);
                continue;
            }
            let class = class_of(object.category_id)
                .ok_or_else(|| format!("annotation id {}: unknown category", object.id))?;
            let mut bbox = bbox;
            if self.masks {
                let mask =
                    self.mask(object).map_err(|e| format!("annotation id {}: {e}", object.id))?;
                let Some(mask) = mask else { continue };
                if cut {
                    bbox = extent(&mask);
                }
                found.masks.push(mask);
            }
            found.boxes.push(bbox);
            found.classes.push(class);
        }
        Ok(found)
    }

    /// (x0, y0, x1, y1) within the input, and whether its edge cut the box; `None` where nothing is left.
    fn bbox(&self, [x, y, w, h]: [f64; 4]) -> Option<([f32; 4], bool)> {
        if w <= 0.0 || h <= 0.0 {
            return None;
        }
        let (height, width) = (self.input.0 as f64, self.input.1 as f64);
        let span = |a: f64, b: f64, end: f64| {
            let (low, high) = (a.min(b), a.max(b));
            (low.clamp(0.0, end), high.clamp(0.0, end), low < 0.0 || high > end)
        };
        let g = self.geometry;
        let (x0, x1, cut_x) = span(g.x.apply(x), g.x.apply(x + w), width);
        let (y0, y1, cut_y) = span(g.y.apply(y), g.y.apply(y + h), height);
        let left = x1 - x0 > LEAST_SIDE_PX && y1 - y0 > LEAST_SIDE_PX;
        left.then(|| ([x0, y0, x1, y1].map(|v| v as f32), cut_x || cut_y))
    }

    fn mask(&self, object: &ObjectRecord) -> Result<Option<InstanceMask>, String> {
        match &object.segmentation {
            None => Err("it has no mask".into()),
            Some(Segmentation::Polygon(polygons)) => self.drawn(polygons),
            Some(_) => match object.mask(self.original) {
                Some(mask) => Ok(self.sampled(&mask?)),
                None => Ok(None),
            },
        }
    }

    /// Polygons are moved corner by corner and rasterised in the input.
    fn drawn(&self, polygons: &[Vec<f64>]) -> Result<Option<InstanceMask>, String> {
        let g = self.geometry;
        let moved: Vec<Vec<f64>> = polygons
            .iter()
            .map(|polygon| {
                let corners = polygon.as_chunks::<2>().0.iter();
                corners.flat_map(|[x, y]| [g.x.apply(*x), g.y.apply(*y)]).collect()
            })
            .collect();
        let mask = Rle::from_polygons((self.input.0 as u32, self.input.1 as u32), &moved)?;
        Ok((mask.area() > 0).then(|| {
            let region = region(mask.bbox());
            InstanceMask { origin: (region[1], region[0]), bitmap: bitmap(&mask, region) }
        }))
    }

    /// Runs are read at the place of every pixel's middle.
    fn sampled(&self, mask: &Rle) -> Option<InstanceMask> {
        if mask.area() == 0 {
            return None;
        }
        let [left, top, width, height] = region(mask.bbox());
        let source = bitmap(mask, [left, top, width, height]);
        let g = self.geometry;
        // Pixels of the input whose middle comes from the region.
        let reach = |a: f64, b: f64, end: usize| {
            let (low, high) = (a.min(b).floor().max(0.0), a.max(b).ceil().min(end as f64));
            (low as usize)..(high.max(low) as usize)
        };
        let columns = reach(g.x.apply(left as f64), g.x.apply((left + width) as f64), self.input.1);
        let rows = reach(g.y.apply(top as f64), g.y.apply((top + height) as f64), self.input.0);
        let place = |at: f64, start: usize, length: usize| {
            let offset = at.floor() - start as f64;
            (offset >= 0.0 && offset < length as f64).then_some(offset as usize)
        };
        let from_column: Vec<_> =
            columns.clone().map(|x| place(g.x.invert(x as f64 + 0.5), left, width)).collect();
        let mut target = Array2::zeros((rows.len(), columns.len()));
        for (y, mut row) in rows.clone().zip(target.rows_mut()) {
            let Some(from) = place(g.y.invert(y as f64 + 0.5), top, height) else { continue };
            for (value, column) in row.iter_mut().zip(&from_column) {
                *value = column.map_or(0, |column| source[(from, column)]);
            }
        }
        let any = target.iter().any(|value| *value > 0);
        any.then_some(InstanceMask { origin: (rows.start, columns.start), bitmap: target })
    }
}

/// [left, top, width, height] of a box with whole sides.
fn region(bbox: [f64; 4]) -> [usize; 4] {
    bbox.map(|value| value as usize)
}

/// The pixels of a mask within [left, top, width, height].
fn bitmap(mask: &Rle, [left, top, width, height]: [usize; 4]) -> Array2<u8> {
    let rows = mask.size().0 as usize;
    let mut out = Array2::zeros((height, width));
    let mut at = 0;
    for (number, count) in mask.counts().iter().enumerate() {
        let end = at + *count as usize;
        while number % 2 == 1 && at < end {
            // One column at a time.
            let (x, y) = (at / rows, at % rows);
            let stop = (y + end - at).min(rows);
            if (left..left + width).contains(&x) {
                let (from, to) =
                    (y.clamp(top, top + height) - top, stop.clamp(top, top + height) - top);
                out.slice_mut(s![from..to, x - left]).fill(1);
            }
            at += stop - y;
        }
        at = end;
    }
    out
}

/// (x0, y0, x1, y1) of the pixels of a mask that has some.
fn extent(mask: &InstanceMask) -> [f32; 4] {
    let (mut low, mut high) = ((usize::MAX, usize::MAX), (0, 0));
    for ((y, x), _) in mask.bitmap.indexed_iter().filter(|(_, value)| **value > 0) {
        low = (low.0.min(y), low.1.min(x));
        high = (high.0.max(y + 1), high.1.max(x + 1));
    }
    let (top, left) = mask.origin;
    [left + low.1, top + low.0, left + high.1, top + high.0].map(|v| v as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(segmentation: Segmentation) -> ObjectRecord {
        ObjectRecord {
            id: 7,
            image_id: 1,
            category_id: 3,
            bbox: [2.0, 4.0, 8.0, 6.0],
            area: None,
            iscrowd: false,
            segmentation: Some(segmentation),
        }
    }

    /// The rectangle x 2..10, y 4..10 of a 20 × 16 image, as polygon and as runs.
    fn both() -> [ObjectRecord; 2] {
        let polygon = vec![2.0, 4.0, 10.0, 4.0, 10.0, 10.0, 2.0, 10.0];
        let runs = Rle::from_polygons((16, 20), std::slice::from_ref(&polygon)).unwrap();
        assert_eq!((runs.bbox(), runs.area()), ([2.0, 4.0, 8.0, 6.0], 48));
        [
            square(Segmentation::Polygon(vec![polygon])),
            square(Segmentation::CompressedRle { size: [16, 20], counts: runs.to_compressed() }),
        ]
    }

    fn travel(geometry: &Geometry, input: (usize, usize), objects: &[ObjectRecord]) -> Instances {
        let journey = Journey { original: (16, 20), input, geometry, masks: true };
        journey.instances(objects, |id| (id == 3).then_some(0)).unwrap()
    }

    /// Rows and columns that a mask covers wholly; fails where it is no rectangle.
    fn rectangle(mask: &InstanceMask) -> [f32; 4] {
        let [x0, y0, x1, y1] = extent(mask);
        let inside = mask.bitmap.iter().filter(|v| **v > 0).count() as f32;
        assert_eq!(inside, (x1 - x0) * (y1 - y0));
        [x0, y0, x1, y1]
    }

    #[test]
    fn boxes_and_both_kinds_of_masks_move_alike() {
        let mut mirrored = Geometry::default();
        mirrored.scale(2.0, 3.0);
        mirrored.mirror(40.0);
        mirrored.shift(5.0, 2.0);
        // x 2..10 → 4..20 → 20..36 → 15..31; y 4..10 → 12..30 → 10..28.
        let want = [15.0, 10.0, 31.0, 28.0];
        let found = travel(&mirrored, (40, 34), &both());
        assert_eq!(found.boxes, [want, want]);
        assert_eq!(rectangle(&found.masks[0]), want);
        assert_eq!(rectangle(&found.masks[1]), want);
        assert_eq!(found.classes, [0, 0]);
    }

    #[test]
    fn a_crop_cuts_boxes_and_leaves_out_what_vanishes() {
        let mut cropped = Geometry::default();
        cropped.shift(6.0, 0.0);
        let found = travel(&cropped, (8, 8), &both());
        let want = [0.0, 4.0, 4.0, 8.0];
        assert_eq!(found.boxes, [want, want]);
        assert_eq!([rectangle(&found.masks[0]), rectangle(&found.masks[1])], [want, want]);
        cropped.shift(6.0, 0.0);
        let nothing = Instances { size: (8, 8), ..Instances::default() };
        assert_eq!(travel(&cropped, (8, 8), &both()), nothing);
    }

    #[test]
    fn a_cut_box_shrinks_to_its_mask() {
        // A triangle with the corner (0, 0): the crop from row 8 on sees its lower, narrower end.
        let object = ObjectRecord {
            bbox: [0.0, 0.0, 16.0, 16.0],
            ..square(Segmentation::Polygon(vec![vec![0.0, 0.0, 16.0, 0.0, 0.0, 16.0]]))
        };
        let mut cropped = Geometry::default();
        cropped.shift(0.0, 8.0);
        let found = travel(&cropped, (8, 20), &[object]);
        assert_eq!(found.boxes[0], extent(&found.masks[0]));
        assert!(found.boxes[0][2] <= 8.0, "{:?}", found.boxes);
    }

    #[test]
    fn crowds_are_kept_apart_and_boxes_without_area_left_out() {
        let [polygon, runs] = both();
        let crowd = ObjectRecord { iscrowd: true, ..runs };
        let flat = ObjectRecord { bbox: [2.0, 4.0, 0.0, 6.0], ..polygon };
        let found = travel(&Geometry::default(), (16, 20), &[crowd, flat]);
        assert_eq!(found.crowds, [[2.0, 4.0, 10.0, 10.0]]);
        assert!(found.boxes.is_empty() && found.masks.is_empty());
    }
}
