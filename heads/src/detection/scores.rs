//! COCO's scores under the names that logs and results have.

use rescatter::Result;
use rescatter::metrics::coco::{CocoAp, CocoScores, IouType, STATS};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Average precision and recall of boxes and, of a model that has them, of masks.
///
/// Serialises to one map: `bbox.AP`, `bbox.AP50`, …, `bbox.per_category`, `segm.AP`, ….
#[derive(Debug, Clone, PartialEq)]
pub struct DetectionScores {
    /// Of boxes.
    pub bbox: CocoScores,
    /// Of masks.
    pub segm: Option<CocoScores>,
}

/// The precisions among [`STATS`], which are what is followed over a training.
const FOLLOWED: usize = 6;
const BBOX: [&str; FOLLOWED] =
    ["bbox.AP", "bbox.AP50", "bbox.AP75", "bbox.APs", "bbox.APm", "bbox.APl"];
const SEGM: [&str; FOLLOWED] =
    ["segm.AP", "segm.AP50", "segm.AP75", "segm.APs", "segm.APm", "segm.APl"];

impl DetectionScores {
    /// Of the boxes that `ap` collected.
    ///
    /// # Errors
    /// If a detection is broken.
    pub fn of_boxes(ap: &CocoAp) -> Result<Self> {
        Ok(Self { bbox: ap.scores(IouType::Bbox)?, segm: None })
    }

    /// The same with those of the masks.
    ///
    /// # Errors
    /// If the annotations have no masks, or a detection is broken.
    pub fn with_masks(self, ap: &CocoAp) -> Result<Self> {
        Ok(Self { segm: Some(ap.scores(IouType::Segm)?), ..self })
    }

    /// The precisions by name; nothing where nothing is annotated.
    pub fn figures(&self) -> Vec<(&'static str, Option<f64>)> {
        let of = |names: [&'static str; FOLLOWED], scores: &CocoScores| {
            let known = |value: f64| Some(value).filter(|value| *value >= 0.0);
            names.into_iter().zip(scores.stats.map(known)).collect::<Vec<_>>()
        };
        let mut figures = of(BBOX, &self.bbox);
        if let Some(segm) = &self.segm {
            figures.extend(of(SEGM, segm));
        }
        figures
    }
}

impl Serialize for DetectionScores {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (kind, scores) in
            [(IouType::Bbox, Some(&self.bbox)), (IouType::Segm, self.segm.as_ref())]
        {
            let Some(scores) = scores else { continue };
            for (name, value) in STATS.iter().zip(scores.stats) {
                map.serialize_entry(&format!("{}.{name}", kind.name()), &value)?;
            }
            let name = format!("{}.per_category", kind.name());
            map.serialize_entry(&name, &scores.per_category)?;
        }
        map.end()
    }
}
