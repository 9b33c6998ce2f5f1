//! COCO's results files: a list of detections with the ids of the annotation file.

use std::path::Path;

use hotcoco::Segmentation;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::annotations::{Annotations, mask_of};
use super::json;
use super::rle::Rle;
use crate::{Error, Result, fs};

/// One detection, in the ids and pixels of the annotation file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detection {
    /// Its image's id.
    pub image_id: u64,
    /// Its category's id.
    pub category_id: u64,
    /// (x, y, width, height) in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bbox: Option<[f64; 4]>,
    /// How sure the model is; higher first.
    pub score: f64,
    /// Its pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segmentation: Option<Segmentation>,
}

impl Detection {
    /// The same with pixels.
    #[must_use]
    pub fn with_mask(mut self, mask: &Rle) -> Self {
        let (height, width) = mask.size();
        let counts = mask.to_compressed();
        self.segmentation = Some(Segmentation::CompressedRle { size: [height, width], counts });
        self
    }

    /// A box without pixels. `bbox` is (x, y, width, height).
    pub fn boxed(image_id: u64, category_id: u64, score: f64, bbox: [f64; 4]) -> Self {
        Self { image_id, category_id, bbox: Some(bbox), score, segmentation: None }
    }

    /// Reads a results file that belongs to `truth`.
    ///
    /// # Errors
    /// If the file cannot be read, is no list of detections, or holds an image or category that `truth` lacks, a box or
    /// score that is no number, or a mask that is none of its image: the message names the first such record.
    pub fn read_all(path: &Path, truth: &Annotations) -> Result<Vec<Self>> {
        let shape = "COCO's results are a list of objects with `image_id`, `category_id`, `score`, and `bbox` or `segmentation`";
        let detections: Vec<Self> = json::read(path, shape)?;
        Self::check_all(&detections, truth).map_err(|reason| Error::file(path, reason))?;
        Ok(detections)
    }

    /// What the first broken detection is and why.
    pub(crate) fn check_all(
        detections: &[Self],
        truth: &Annotations,
    ) -> std::result::Result<(), String> {
        let places = truth.image_index();
        let check = |(index, detection): (usize, &Self)| {
            let place = places.get(&detection.image_id).copied();
            let why = detection.fault(place.map(|at| &truth.images[at]), truth)?;
            let (image, category) = (detection.image_id, detection.category_id);
            Some(format!("detection {index} (image id {image}, category id {category}): {why}"))
        };
        match detections.par_iter().enumerate().find_map_first(check) {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    fn fault(&self, image: Option<&super::ImageRecord>, truth: &Annotations) -> Option<String> {
        let Some(image) = image else {
            return Some(format!("`{}` has no such image", truth.path.display()));
        };
        if truth.class_of(self.category_id).is_none() {
            return Some(format!("`{}` has no such category", truth.path.display()));
        }
        if !self.score.is_finite() {
            return Some(format!("its score is {}", self.score));
        }
        if let Some(bbox) = self.bbox
            && (bbox.iter().any(|value| !value.is_finite()) || bbox[2] < 0.0 || bbox[3] < 0.0)
        {
            return Some(format!("its box is {bbox:?}"));
        }
        match (&self.segmentation, self.bbox) {
            (None, None) => Some("it has neither `bbox` nor `segmentation`".into()),
            (None, Some(_)) => None,
            (Some(segmentation), _) => mask_of(segmentation, (image.height, image.width)).err(),
        }
    }

    /// Writes a results file, at once or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_all(path: &Path, detections: &[Self]) -> Result<()> {
        let bytes = serde_json::to_vec(detections).map_err(|e| Error::file(path, e))?;
        fs::atomic_write(path, bytes)
    }
}
