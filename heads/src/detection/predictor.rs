//! Detecting objects in pictures with a trained model: the library call behind `rescatter predict`.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use ndarray::Array2;
use rescatter::config::{EvalConfig, Variant};
use rescatter::data::transforms::{Frame, Labels, Pipeline};
use rescatter::model::Model;
use rescatter::rng::{Purpose, Rng};
use rescatter::{Error, Result};

use super::{Detector, Object, at_original};
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
        let pipeline = Pipeline::new(&config.data.val.transforms, Labels::AsOnDisk)?;
        Ok(Self { model, classes, eval: config.eval, pipeline })
    }

    /// Names of the classes in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many layers dispatch tokens, and so the largest value of a token map.
    pub fn dispatching_layers(&self) -> usize {
        match self.model.backbone.dispatch().variant {
            Variant::None => 0,
            Variant::Mlp => self.model.backbone.dims().depth,
        }
    }

    /// Detects the objects of one image.
    ///
    /// # Errors
    /// If it is too small for the transforms.
    pub fn predict(&self, image: &RgbImage) -> Result<Prediction> {
        // The transforms of an evaluation draw nothing.
        let mut stream = Rng::new(0).stream(Purpose::Augment, 0, 0);
        let done = self.pipeline.apply(Frame::new(image.clone()), String::new(), &mut stream)?;
        let (c, h, w) = done.image.dim();
        let input =
            Tensor::from_iter(done.image.iter().copied(), &Device::Cpu)?.reshape((1, c, h, w))?;
        let found = Detector::new(&self.model, &self.eval)?.detect(&input, &done.meta)?;
        Ok(Prediction {
            objects: at_original(&found.detections),
            token_map: found.layers_worked.map(|map| nearest(&map, done.meta.original)),
            kept: found.kept,
        })
    }
}
