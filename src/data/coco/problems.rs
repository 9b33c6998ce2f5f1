//! What can be wrong with an annotation file.

use std::collections::HashMap;
use std::hash::Hash;

use rayon::prelude::*;
use serde::Serialize;

use super::annotations::{Annotations, ObjectRecord};
use super::rle::check_polygon;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Two images have one id, or one file.
    DuplicateImage,
    /// Two annotations have one id.
    DuplicateAnnotation,
    /// Two categories have one id, or one name.
    DuplicateCategory,
    /// An image without pixels.
    EmptyImage,
    /// An annotation's image is not in the file.
    UnknownImage,
    /// An annotation's category is not in the file.
    UnknownCategory,
    /// A box with a negative side or something that is no number.
    BrokenBox,
    /// Runs or polygons that make no mask of the image.
    BrokenMask,
    /// No mask, while other objects have one.
    MissingMask,
    /// A box more than a pixel outside its image; it is clipped.
    BoxOutside,
    /// A box without area; it is left out of training.
    EmptyBox,
    /// A mask without pixels; its object is left out of training.
    EmptyMask,
}

impl Fault {
    /// A few words for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::DuplicateImage => "duplicate image",
            Self::DuplicateAnnotation => "duplicate annotation id",
            Self::DuplicateCategory => "duplicate category",
            Self::EmptyImage => "image without pixels",
            Self::UnknownImage => "unknown image id",
            Self::UnknownCategory => "unknown category id",
            Self::BrokenBox => "broken box",
            Self::BrokenMask => "broken mask",
            Self::MissingMask => "missing mask",
            Self::BoxOutside => "box outside its image",
            Self::EmptyBox => "box without area",
            Self::EmptyMask => "mask without pixels",
        }
    }

    /// Whether a set with this fault cannot be trained on as it is; the others are dealt with.
    pub fn stops_training(self) -> bool {
        !matches!(
            self,
            Self::DuplicateAnnotation | Self::BoxOutside | Self::EmptyBox | Self::EmptyMask
        )
    }

    /// Whether scores on the file would be undefined.
    pub fn stops_scoring(self) -> bool {
        !matches!(
            self,
            Self::BoxOutside
                | Self::EmptyBox
                | Self::EmptyMask
                | Self::BrokenMask
                | Self::MissingMask
        )
    }
}

/// A fault of one record.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Its kind.
    pub fault: Fault,
    /// The image that it belongs to, as an index into `images`; `None` where there is none.
    pub image: Option<usize>,
    /// What is wrong, with the record's id.
    pub message: String,
}

/// How closely masks are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Not at all.
    Boxes,
    /// Whether they can be decoded.
    Masks,
    /// Whether they hold any pixels, too: every polygon is rasterised.
    Pixels,
}

/// Boxes may be this far outside before it is reported: those of COCO itself are off by rounding.
const SLACK_PX: f64 = 1.0;

impl Annotations {
    /// Everything that is wrong, images first, then categories, then objects in their order.
    pub fn problems(&self, depth: Depth) -> Vec<Problem> {
        let mut found = self.image_problems();
        found.extend(self.category_problems());
        let ids = self.objects.iter().map(|object| object.id);
        for (index, id) in repeated(ids) {
            found.push(Problem {
                fault: Fault::DuplicateAnnotation,
                image: None,
                message: format!("annotation id {id} occurs again at annotation {index}"),
            });
        }
        let places = self.image_index();
        let with_masks = self.objects.iter().any(ObjectRecord::has_mask);
        let judge = Judge { file: self, places: &places, with_masks, depth };
        found.par_extend(self.objects.par_iter().flat_map_iter(|object| judge.object(object)));
        found
    }

    fn image_problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut add = |fault, index, message| {
            found.push(Problem { fault, image: Some(index), message });
        };
        for (index, id) in repeated(self.images.iter().map(|image| image.id)) {
            add(Fault::DuplicateImage, index, format!("image id {id} occurs again"));
        }
        for (index, name) in repeated(self.images.iter().map(|image| &image.file_name)) {
            let id = self.images[index].id;
            add(
                Fault::DuplicateImage,
                index,
                format!("image id {id}: the file `{name}` occurs again"),
            );
        }
        for (index, image) in self.images.iter().enumerate() {
            if image.width == 0 || image.height == 0 {
                let (id, width, height) = (image.id, image.width, image.height);
                add(Fault::EmptyImage, index, format!("image id {id} is {width}×{height} pixels"));
            }
        }
        found
    }

    fn category_problems(&self) -> Vec<Problem> {
        let ids = repeated(self.categories.iter().map(|c| c.id))
            .into_iter()
            .map(|(_, id)| format!("category id {id} occurs again"));
        let names =
            repeated(self.categories.iter().map(|c| &c.name)).into_iter().map(|(index, name)| {
                format!("category id {}: the name `{name}` occurs again", self.categories[index].id)
            });
        let problem = |message| Problem { fault: Fault::DuplicateCategory, image: None, message };
        ids.chain(names).map(problem).collect()
    }
}

/// The values that occurred before, with their places.
fn repeated<T: Eq + Hash + Clone>(values: impl Iterator<Item = T>) -> Vec<(usize, T)> {
    let mut seen = HashMap::new();
    values
        .enumerate()
        .filter(|(index, value)| seen.insert(value.clone(), *index).is_some())
        .collect()
}

struct Judge<'a> {
    file: &'a Annotations,
    places: &'a HashMap<u64, usize>,
    with_masks: bool,
    depth: Depth,
}

impl Judge<'_> {
    fn object(&self, object: &ObjectRecord) -> Vec<Problem> {
        let image = self.places.get(&object.image_id).copied();
        let mut found = Vec::new();
        let mut add = |fault, what: String| {
            let message =
                format!("annotation id {} (image id {}): {what}", object.id, object.image_id);
            found.push(Problem { fault, image, message });
        };
        if self.file.class_of(object.category_id).is_none() {
            add(Fault::UnknownCategory, format!("there is no category id {}", object.category_id));
        }
        let Some(index) = image else {
            add(Fault::UnknownImage, "there is no such image".into());
            return found;
        };
        let record = &self.file.images[index];
        let size = (record.height, record.width);
        if let Some((fault, what)) = judge_box(object.bbox, size) {
            add(fault, what);
        }
        if let Some((fault, what)) = self.judge_mask(object, size) {
            add(fault, what);
        }
        found
    }

    fn judge_mask(&self, object: &ObjectRecord, size: (u32, u32)) -> Option<(Fault, String)> {
        if self.depth == Depth::Boxes || size.0 == 0 || size.1 == 0 {
            return None;
        }
        let Some(segmentation) = &object.segmentation else {
            let missing = self.with_masks && !object.iscrowd;
            return missing.then(|| (Fault::MissingMask, "it has no mask, but others have".into()));
        };
        if let (hotcoco::Segmentation::Polygon(polygons), Depth::Masks) = (segmentation, self.depth)
        {
            let wrong = polygons.iter().find_map(|polygon| check_polygon(polygon).err());
            return wrong.map(|why| (Fault::BrokenMask, why));
        }
        match object.mask(size)? {
            Err(why) => Some((Fault::BrokenMask, why)),
            Ok(mask) if self.depth == Depth::Pixels && mask.area() == 0 => {
                Some((Fault::EmptyMask, "its mask has no pixels".into()))
            }
            Ok(_) => None,
        }
    }
}

fn judge_box(bbox: [f64; 4], (height, width): (u32, u32)) -> Option<(Fault, String)> {
    let [x, y, w, h] = bbox;
    if bbox.iter().any(|value| !value.is_finite()) || w < 0.0 || h < 0.0 {
        return Some((Fault::BrokenBox, format!("its box is {bbox:?}")));
    }
    let (right, bottom) = (f64::from(width) + SLACK_PX, f64::from(height) + SLACK_PX);
    if x < -SLACK_PX || y < -SLACK_PX || x + w > right || y + h > bottom {
        let what = format!("its box {bbox:?} reaches beyond the image of {width}×{height}");
        return Some((Fault::BoxOutside, what));
    }
    (w == 0.0 || h == 0.0).then(|| (Fault::EmptyBox, format!("its box {bbox:?} has no area")))
}
