//! Detecting objects in pictures with a trained model: the library call behind `rescatter predict`.

use std::path::Path;

use image::RgbImage;
use ndarray::Array2;
use rescatter::config::EvalConfig;
use rescatter::data::transforms::{Labels, Pipeline};
use rescatter::model::Model;
use rescatter::{Error, Result};

use super::{Detector, Object, at_original};
use crate::images::input;
use crate::kept::Kept;
use crate::run::{Trained, Which};
use crate::token_map::nearest;
use crate::{MaskRcnn, TaskModel};

/// A detection model with the transforms that its images need.
///
/// ```no_run
/// use rescatter_heads::DetectionPredictor;
///
/// let predictor = DetectionPredictor::open("runs/coco")?;
/// let image = rescatter::data::read_image("street.jpg")?;
/// for object in predictor.predict(&image)?.objects {
///     let name = &predictor.classes()[object.class as usize];
///     println!("{name} {:.2} at {:?}", object.score, object.bbox);
/// }
/// # Ok::<(), rescatter::Error>(())
/// ```
pub struct DetectionPredictor {
    model: Model<MaskRcnn>,
    classes: Vec<String>,
    eval: EvalConfig,
    pipeline: Pipeline,
}

/// What was found in one image.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// By falling score, in pixels of the image.
    pub objects: Vec<Object>,
    /// How many layers worked on the patch of every pixel; nothing for a model without dispatchers.
    pub token_map: Option<Array2<f32>>,
    /// Share of the tokens that were worked on, overall and per layer.
    pub kept: Kept,
}

impl DetectionPredictor {
    /// The best checkpoint of a run's folder, or a file that `rescatter weights export` wrote.
    ///
    /// # Errors
    /// If there is none, or it does not detect.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Trained::open(path.as_ref(), Which::Best, &[])?.calibrated()?)
    }

    /// Of a model that was opened before.
    ///
    /// # Errors
    /// If it does not detect, or the transforms of its validation set do not keep the whole image.
    pub fn new(trained: Trained) -> Result<Self> {
        let Trained { config, model, classes, .. } = trained;
        let TaskModel::Detection(model) = model else {
            return Err(Error::usage("the model does not detect objects"));
        };
        Detector::new(&model, &config.eval)?;
        let pipeline = Pipeline::new(config.data.val_transforms()?, Labels::AsOnDisk)?;
        Ok(Self { model, classes, eval: config.eval, pipeline })
    }

    /// Names of the classes in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many layers dispatch tokens, and so the largest value of a token map.
    pub fn dispatching_layers(&self) -> usize {
        self.model.backbone.dispatched_parts()
    }

    /// Detects the objects of one image.
    ///
    /// # Errors
    /// If it is too small for the transforms.
    pub fn predict(&self, image: &RgbImage) -> Result<Prediction> {
        let (input, meta) = input(&self.pipeline, image)?;
        let found = Detector::new(&self.model, &self.eval)?.detect(&input, &meta)?;
        Ok(Prediction {
            objects: at_original(&found.detections),
            token_map: found.layers_worked.map(|map| nearest(&map, meta.original)),
            kept: found.kept,
        })
    }
}
