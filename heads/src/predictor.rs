//! Segmenting pictures with a trained model: the library call behind `rescatter predict`.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use ndarray::{Array2, Array3};
use rescatter::backbone::Pass;
use rescatter::config::EvalConfig;
use rescatter::data::LabelMap;
use rescatter::data::transforms::{Labels, Pipeline};
use rescatter::model::Model;
use rescatter::{Error, Result};

use crate::images::input;
use crate::run::{Trained, Which};
use crate::segmentation::inference::{Segmentation, Segmenter};
use crate::token_map::nearest;
use crate::{Config, SegmentationHead, TaskModel};

/// A segmentation model with the transforms that its images need.
///
/// Of a run:
/// ```no_run
/// use rescatter_heads::Predictor;
///
/// let predictor = Predictor::open("runs/camvid")?;
/// let image = rescatter::data::read_image("street.jpg")?;
/// let prediction = predictor.predict(&image)?;
/// let class = prediction.labels[(10, 20)];
/// let name = &predictor.classes()[usize::from(class)];
/// let worked_on = prediction.kept.overall();
/// # let _ = (name, worked_on);
/// # Ok::<(), rescatter::Error>(())
/// ```
/// Of a config, here with random weights:
/// ```
/// use rescatter_heads::{Config, Predictor, TaskModel, Trained};
///
/// let yaml = "
/// task: segmentation
/// backbone: { embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4] }
/// dispatch: { variant: mlp, inference: { top_k: 0.5 } }
/// head: { linear: {} }
/// data:
///   train: { ade20k: { images: train, labels: labels, classes: [road, tree, sky] }, transforms: [normalize: {}] }
///   val: { ade20k: { images: val, labels: labels, classes: [road, tree, sky] }, transforms: [normalize: {}] }
/// train: { iterations: 1, batch_size: 1 }
/// ";
/// let config: Config = rescatter::config::load::parse(yaml, "example.yaml".as_ref(), &[])?;
/// let classes = rescatter_heads::task::class_names(&config)?;
/// let model = TaskModel::new(&config, classes.len(), &candle_core::Device::Cpu)?;
/// let predictor = Predictor::new(Trained { config, model, classes, earlier: Vec::new(), step: 0 })?;
///
/// let prediction = predictor.predict(&image::RgbImage::new(40, 30))?;
/// assert_eq!(prediction.labels.dim(), (30, 40));
/// assert_eq!(prediction.kept.per_layer(), [0.5, 0.5]);
/// assert_eq!(prediction.probabilities()?.dim(), (3, 30, 40));
/// # Ok::<(), rescatter::Error>(())
/// ```
pub struct Predictor {
    model: Model<SegmentationHead>,
    classes: Vec<String>,
    eval: EvalConfig,
    pipeline: Pipeline,
}

/// What was found in one image, at the image's own size.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The class of every pixel.
    pub labels: LabelMap,
    /// How many layers worked on the patch of every pixel; nothing for a model without dispatchers.
    pub token_map: Option<Array2<f32>>,
    /// Share of the tokens that were worked on, overall and per layer.
    pub kept: crate::kept::Kept,
    segmentation: Segmentation,
}

impl Prediction {
    /// The probability of every class at every pixel, `[K, H, W]`.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn probabilities(&self) -> Result<Array3<f32>> {
        Ok(self.segmentation.probabilities(self.labels.dim())?)
    }
}

impl Predictor {
    /// The best checkpoint of a run's folder, or a file that `rescatter weights export` wrote.
    ///
    /// # Errors
    /// If there is none, or it does not segment.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Trained::open(path.as_ref(), Which::Best, &[])?.calibrated()?)
    }

    /// Of a model that was opened before.
    ///
    /// # Errors
    /// If it does not segment, or the transforms of its validation set do not keep the whole image.
    pub fn new(trained: Trained) -> Result<Self> {
        let Trained { config, model, classes, .. } = trained;
        match model {
            TaskModel::Segmentation(model) => Self::of(&config, model, classes),
            TaskModel::Detection(_) => {
                Err(Error::usage("the model detects objects; `DetectionPredictor` is for those"))
            }
            TaskModel::Classification(_) => Err(Error::usage(
                "the model classifies whole images; `ClassPredictor` is for those",
            )),
            TaskModel::Video(_) => {
                Err(Error::usage("the model classifies clips; `VideoPredictor` is for those"))
            }
        }
    }

    fn of(config: &Config, model: Model<SegmentationHead>, classes: Vec<String>) -> Result<Self> {
        let pipeline = Pipeline::new(config.data.val_transforms()?, Labels::AsOnDisk)?;
        Ok(Self { model, classes, eval: config.eval.clone(), pipeline })
    }

    /// Names of the classes in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many layers dispatch tokens, and so the largest value of a token map.
    pub fn dispatching_layers(&self) -> usize {
        self.model.backbone.dispatched_parts()
    }

    /// Segments one image.
    ///
    /// # Errors
    /// If it is too small for the transforms.
    pub fn predict(&self, image: &RgbImage) -> Result<Prediction> {
        let (input, meta) = input(&self.pipeline, image)?;
        let segmenter = Segmenter { model: &self.model, config: &self.eval };
        let segmentation = segmenter.segment(&input, &meta)?;
        Ok(Prediction {
            labels: segmentation.labels(meta.original),
            token_map: segmentation.layers_worked.as_ref().map(|map| nearest(map, meta.original)),
            kept: segmentation.kept.clone(),
            segmentation,
        })
    }

    /// The dense features of the whole image in one pass: the maps of the head's taps, each `[C, h, w]`, as they enter
    /// the head, skipped tokens in their places.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    pub fn features(&self, image: &RgbImage) -> Result<Vec<Tensor>> {
        let (input, _) = input(&self.pipeline, image)?;
        let input = input.to_device(self.model.params.device())?;
        let features = self.model.backbone.forward(&input, &Pass::Infer)?;
        let maps = features.maps.iter().map(|map| map.squeeze(0)?.to_device(&Device::Cpu));
        Ok(maps.collect::<candle_core::Result<_>>()?)
    }
}
