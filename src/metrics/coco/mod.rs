//! COCO's average precision for boxes and masks, and TIDE's breakdown of what it is lost to.
//!
//! The numbers are those of pycocotools' `COCOeval` with its standard settings: IoU 0.50 to 0.95 in steps of 0.05, 101 recall
//! points, 100 detections an image. The matching itself is the crate `hotcoco`'s; what goes in is checked here first.
//! One departure: pycocotools takes a match with annotation id 0 for none; here every id is an id.

mod breakdown;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use hotcoco::COCOeval;
use serde::Serialize;

pub use breakdown::{Breakdown, ErrorKind};

use crate::data::coco::{Annotations, Depth, Detection, Rle};
use crate::world::World;
use crate::{Error, Result};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IouType {
    /// Boxes.
    Bbox,
    /// Masks.
    Segm,
}

impl IouType {
    /// `bbox` or `segm`, as in COCO's tools.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bbox => "bbox",
            Self::Segm => "segm",
        }
    }

    fn hotcoco(self) -> hotcoco::IouType {
        match self {
            Self::Bbox => hotcoco::IouType::Bbox,
            Self::Segm => hotcoco::IouType::Segm,
        }
    }
}

/// The twelve numbers and the categories' own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CocoScores {
    /// In pycocotools' order, see [`STATS`]; −1 where nothing is annotated.
    pub stats: [f64; 12],
    /// In rising id.
    pub per_category: Vec<CategoryAp>,
}

/// The average precision of one category.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CategoryAp {
    /// Its id in the annotation file.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Mean over the ten IoU thresholds, all areas, 100 detections; −1 where nothing is annotated.
    #[serde(rename = "AP")]
    pub ap: f64,
    /// The same at IoU 0.5.
    #[serde(rename = "AP50")]
    pub ap50: f64,
}

/// Names of the twelve numbers.
pub const STATS: [&str; 12] =
    ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];

/// Detections that have been matched with what is annotated.
pub struct Evaluated {
    evaluation: COCOeval,
    names: HashMap<u64, String>,
    /// Time for matching and for accumulating.
    pub elapsed: Duration,
}

impl Evaluated {
    /// Matches `detections` with `truth`. As in pycocotools, what the first detection carries decides for all: with a box,
    /// areas are those of the boxes; without one, those of the masks.
    ///
    /// # Errors
    /// If an annotation or a detection is broken; the message names file and record.
    pub fn new(truth: &Annotations, detections: Vec<Detection>, kind: IouType) -> Result<Self> {
        check(truth, kind)?;
        let refused = |error: hotcoco::Error| Error::file(&truth.path, error);
        let annotated = hotcoco::COCO::from_dataset(dataset(truth));
        let detected = annotated
            .load_res_anns(detections.into_iter().map(record_of_detection).collect())
            .map_err(refused)?;
        let start = Instant::now();
        let mut evaluation = COCOeval::new(annotated, detected, kind.hotcoco());
        evaluation.evaluate().map_err(refused)?;
        evaluation.accumulate();
        let elapsed = start.elapsed();
        // Fills in the twelve numbers; its lines differ from pycocotools'.
        evaluation.summarize_lines();
        let names = truth.categories.iter().map(|c| (c.id, c.name.clone())).collect();
        Ok(Self { evaluation, names, elapsed })
    }

    /// The twelve numbers and every category's.
    ///
    /// # Errors
    /// If there are no numbers, which would be a fault of the evaluation itself.
    pub fn scores(&self) -> Result<CocoScores> {
        let missing = || Error::usage("the evaluation gave no scores");
        let found = self.evaluation.stats().ok_or_else(missing)?;
        let stats: [f64; 12] = found.try_into().map_err(|_| missing())?;
        let sums = self.evaluation.accumulated().ok_or_else(missing)?;
        let average = |category: usize, thresholds: std::ops::Range<usize>| {
            let values = thresholds.flat_map(|t| {
                (0..sums.shape.r).map(move |r| {
                    sums.precision[sums.precision_idx(t, r, category, 0, sums.shape.m - 1)]
                })
            });
            mean_of_known(values)
        };
        let per_category = sums
            .cat_ids
            .iter()
            .enumerate()
            .map(|(category, id)| CategoryAp {
                id: *id,
                name: self.names.get(id).cloned().unwrap_or_default(),
                ap: average(category, 0..sums.shape.t),
                ap50: average(category, 0..1),
            })
            .collect();
        Ok(CocoScores { stats, per_category })
    }
}

/// −1 where no value is known, as pycocotools has it.
fn mean_of_known(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) =
        values.filter(|v| *v > -1.0).fold((0.0, 0usize), |(sum, count), v| (sum + v, count + 1));
    if count == 0 { -1.0 } else { sum / count as f64 }
}

/// Refuses an annotation file on which scores would be undefined.
///
/// # Errors
/// Names the first broken record.
pub fn check(truth: &Annotations, kind: IouType) -> Result<()> {
    let depth = if kind == IouType::Segm { Depth::Masks } else { Depth::Boxes };
    let mut problems = truth.problems(depth).into_iter();
    let stops = |fault: crate::data::coco::Fault| match kind {
        IouType::Bbox => fault.stops_scoring(),
        IouType::Segm => fault.stops_scoring() || fault.stops_training(),
    };
    if let Some(problem) = problems.find(|problem| stops(problem.fault)) {
        return Err(Error::file(&truth.path, problem.message));
    }
    match truth.objects.iter().find(|object| kind == IouType::Segm && !object.has_mask()) {
        Some(object) => {
            let what = format!("annotation id {}: there is no mask to compare with", object.id);
            Err(Error::file(&truth.path, what).with_hint("score boxes with `--iou-type bbox`"))
        }
        None => Ok(()),
    }
}

fn dataset(truth: &Annotations) -> hotcoco::Dataset {
    let images = truth.images.iter().map(|image| hotcoco::Image {
        id: image.id,
        file_name: image.file_name.clone(),
        height: image.height,
        width: image.width,
        ..Default::default()
    });
    let annotations = truth.objects.iter().map(|object| hotcoco::Annotation {
        id: object.id,
        image_id: object.image_id,
        category_id: object.category_id,
        bbox: Some(object.bbox),
        area: object.area,
        segmentation: object.segmentation.clone(),
        iscrowd: object.iscrowd,
        ..Default::default()
    });
    let categories = truth.categories.iter().map(|category| hotcoco::Category {
        id: category.id,
        name: category.name.clone(),
        ..Default::default()
    });
    hotcoco::Dataset {
        images: images.collect(),
        annotations: annotations.collect(),
        categories: categories.collect(),
        ..Default::default()
    }
}

fn record_of_detection(detection: Detection) -> hotcoco::Annotation {
    hotcoco::Annotation {
        image_id: detection.image_id,
        category_id: detection.category_id,
        bbox: detection.bbox,
        score: Some(detection.score),
        segmentation: detection.segmentation,
        ..Default::default()
    }
}

/// Collects a model's detections image by image.
pub struct CocoAp {
    truth: Annotations,
    /// Where the image of each file is in `truth.images`.
    places: HashMap<String, usize>,
    detections: Vec<Detection>,
    masks: bool,
}

/// One detection of a model.
#[derive(Debug, Clone)]
pub struct Detected {
    /// Its class, `0..K`.
    pub class: u32,
    /// How sure the model is.
    pub score: f32,
    /// (x0, y0, x1, y1) in pixels of the image on disk.
    pub bbox: [f32; 4],
    /// Its pixels, of the image's size on disk.
    pub mask: Option<Rle>,
}

impl CocoAp {
    /// Nothing detected yet on the images of an annotation file.
    ///
    /// # Errors
    /// If the file cannot be read or scores on it would be undefined.
    pub fn new(annotations: &Path) -> Result<Self> {
        Self::of(Annotations::read(annotations)?)
    }

    /// Nothing detected yet on the images of `truth`.
    ///
    /// # Errors
    /// If scores on it would be undefined.
    pub fn of(truth: Annotations) -> Result<Self> {
        check(&truth, IouType::Bbox)?;
        let places = truth
            .images
            .iter()
            .enumerate()
            .map(|(i, image)| (image.file_name.clone(), i))
            .collect();
        Ok(Self { truth, places, detections: Vec::new(), masks: false })
    }

    /// Adds what was found on the image `file_name`.
    ///
    /// # Errors
    /// If the annotations have no such image or class, or a mask is not of the image's size.
    pub fn add(
        &mut self,
        file_name: &str,
        found: impl IntoIterator<Item = Detected>,
    ) -> Result<()> {
        let wrong = |what: String| Error::file(&self.truth.path, what);
        let Some(place) = self.places.get(file_name) else {
            return Err(wrong(format!("there is no image with the file `{file_name}`")));
        };
        let image = &self.truth.images[*place];
        for detected in found {
            let category = self.truth.category_of(detected.class).ok_or_else(|| {
                wrong(format!("there is no category for class {}", detected.class))
            })?;
            let [x0, y0, x1, y1] = detected.bbox.map(f64::from);
            let bbox = [x0, y0, x1 - x0, y1 - y0];
            let mut detection =
                Detection::boxed(image.id, category, f64::from(detected.score), bbox);
            if let Some(mask) = &detected.mask {
                if mask.size() != (image.height, image.width) {
                    let ((h, w), id) = (mask.size(), image.id);
                    return Err(wrong(format!("a mask for image id {id} is {w}×{h}")));
                }
                self.masks = true;
                detection = detection.with_mask(mask);
            }
            self.detections.push(detection);
        }
        Ok(())
    }

    /// Takes what all processes found in place of what this one did, in the order of the images.
    ///
    /// # Errors
    /// If the processes cannot talk to each other.
    pub fn over_ranks(&mut self, world: World) -> Result<()> {
        if world.size > 1 {
            let images = self.truth.images.iter().enumerate();
            let places: HashMap<u64, usize> = images.map(|(at, image)| (image.id, at)).collect();
            self.detections = world.gather(std::mem::take(&mut self.detections))?.concat();
            self.detections.sort_by_key(|found| places.get(&found.image_id).copied());
            self.masks = self.detections.iter().any(|found| found.segmentation.is_some());
        }
        Ok(())
    }

    /// What is annotated.
    pub fn truth(&self) -> &Annotations {
        &self.truth
    }

    /// Whether any detection has a mask.
    pub fn has_masks(&self) -> bool {
        self.masks
    }

    /// What was collected, in the ids of the annotation file: the content of a results file.
    pub fn detections(&self) -> &[Detection] {
        &self.detections
    }

    /// The scores so far. Areas of masks are those of their pixels.
    ///
    /// # Errors
    /// If an annotation or a detection is broken.
    pub fn scores(&self, kind: IouType) -> Result<CocoScores> {
        let mut detections = self.detections.clone();
        if kind == IouType::Segm {
            detections.retain_mut(|detection| {
                detection.bbox = None;
                detection.segmentation.is_some()
            });
        }
        Detection::check_all(&detections, &self.truth).map_err(Error::usage)?;
        Evaluated::new(&self.truth, detections, kind)?.scores()
    }
}
