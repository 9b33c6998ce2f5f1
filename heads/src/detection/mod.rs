//! Detection: objects in pixels of the image on disk, whichever head they come from.

mod inference;
mod predictor;
mod scores;

use ndarray::Array2;
use rayon::prelude::*;
use rescatter::boxes::clip;
use rescatter::config::SplitConfig;
use rescatter::data::InstanceMask;
use rescatter::data::coco::{Annotations, Rle};
use rescatter::metrics::coco::{CocoAp, Detected};
use rescatter::{Error, Result};

pub use inference::{Detector, Found};
pub use predictor::{DetectionPredictor, Prediction};
pub use scores::DetectionScores;

use crate::mask_rcnn::Detections;
use crate::mask_rcnn::paste::paste;

/// One detected object, in pixels of the image on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// (x0, y0, x1, y1), inside the image.
    pub bbox: [f32; 4],
    /// Its class, `0..K`.
    pub class: u32,
    /// How sure the model is.
    pub score: f32,
    /// Its pixels; nothing from a model without masks.
    pub mask: Option<InstanceMask>,
}

impl Object {
    /// The same for a COCO results file; `size`: height and width of the image on disk.
    ///
    /// # Errors
    /// If the mask leaves the image.
    pub fn detected(&self, size: (usize, usize)) -> Result<Detected> {
        let size = (size.0 as u32, size.1 as u32);
        let mask = self.mask.as_ref().map(|mask| Rle::from_instance(mask, size)).transpose();
        Ok(Detected {
            class: self.class,
            score: self.score,
            bbox: self.bbox,
            mask: mask.map_err(Error::usage)?,
        })
    }
}

/// The detections of an image in pixels of the image on disk; its transforms must have kept the whole of it. Boxes without
/// area are left out.
pub fn at_original(found: &Detections) -> Vec<Object> {
    let ((height, width), (h, w)) = (found.meta.original, found.meta.input);
    let (x, y) = (width as f32 / w.max(1) as f32, height as f32 / h.max(1) as f32);
    let object = |i: usize| {
        let [x0, y0, x1, y1] = found.boxes[i];
        let bbox = clip([x0 * x, y0 * y, x1 * x, y1 * y], (height, width));
        if bbox[2] <= bbox[0] || bbox[3] <= bbox[1] {
            return None;
        }
        let mask = |probs: &Array2<f32>| paste(probs, bbox, (height, width)).mask();
        let mask = found.masks.get(i).map(mask);
        Some(Object { bbox, class: found.classes[i], score: found.scores[i], mask })
    };
    (0..found.boxes.len()).into_par_iter().filter_map(object).collect()
}

/// Collects detections on the validation set of a config.
///
/// # Errors
/// If it is not one COCO set.
pub fn collector(split: &SplitConfig) -> Result<CocoAp> {
    match &split.coco {
        Some(config) => CocoAp::of(Annotations::of(config)?),
        None => Err(Error::usage("detection is evaluated on one annotation file")
            .with_hint("let `data.val` be one `coco` reader, without `concat`")),
    }
}
