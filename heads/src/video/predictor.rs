//! Classifying videos with a trained model: the library call behind `rescatter predict`.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use ndarray::Array2;
use rescatter::backbone::Pass;
use rescatter::config::VideoListConfig;
use rescatter::data::transforms::{Labels, Pipeline};
use rescatter::data::video::{self, Video};
use rescatter::head::Head;
use rescatter::model::Model;
use rescatter::{Error, Result};

use super::{Guess, best, mean};
use crate::images::input;
use crate::kept::Kept;
use crate::run::{Trained, Which};
use crate::token_map::worked_grids;
use crate::{TaskModel, TemporalHead};

/// A video model with the sampling and the transforms of its validation set.
///
/// ```no_run
/// use rescatter_heads::VideoPredictor;
///
/// let predictor = VideoPredictor::open("runs/motion")?;
/// let prediction = predictor.predict("clip.mp4".as_ref(), None)?;
/// let best = prediction.best()[0];
/// println!("{} {:.2}", predictor.classes()[best.class as usize], best.probability);
/// # Ok::<(), rescatter::Error>(())
/// ```
pub struct VideoPredictor {
    model: Model<TemporalHead>,
    classes: Vec<String>,
    list: VideoListConfig,
    pipeline: Pipeline,
}

/// What was found in one video.
#[derive(Debug)]
pub struct VideoPrediction {
    /// In the order of time.
    pub windows: Vec<Window>,
    /// How many frames the video has.
    pub frames: usize,
    /// Seconds from the first frame to each; nothing for a folder of frames.
    pub times: Option<Vec<f64>>,
    /// Share of the tokens that were worked on, overall and per layer.
    pub kept: Kept,
}

/// What was found in one clip of a video.
#[derive(Debug)]
pub struct Window {
    /// The numbers of its frames.
    pub frames: Vec<usize>,
    /// One per class.
    pub logits: Vec<f32>,
    /// The frames as the model saw them, normalised, `[T, 3, H, W]`.
    pub input: Tensor,
    /// How many layers worked on each patch of each frame; empty for a model without dispatchers.
    pub token_maps: Vec<Array2<f32>>,
}

impl VideoPrediction {
    /// The best classes by the mean logits of all windows, falling.
    pub fn best(&self) -> Vec<Guess> {
        let logits: Vec<Vec<f32>> =
            self.windows.iter().map(|window| window.logits.clone()).collect();
        best(&mean(&logits))
    }
}

impl VideoPredictor {
    /// The best checkpoint of a run's folder, or a file that `rescatter weights export` wrote.
    ///
    /// # Errors
    /// If there is none, or it does not classify videos.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Trained::open(path.as_ref(), Which::Best, &[])?.calibrated()?)
    }

    /// Of a model that was opened before.
    ///
    /// # Errors
    /// If it does not classify videos, or its validation set has no list.
    pub fn new(trained: Trained) -> Result<Self> {
        let Trained { config, model, classes, .. } = trained;
        let TaskModel::Video(model) = model else {
            return Err(Error::usage("the model does not classify videos"));
        };
        let pipeline = Pipeline::new(config.data.val_transforms()?, Labels::OfTheWhole)?;
        let list = video::first_list(&config.data.val)?.clone();
        Ok(Self { model, classes, list, pipeline })
    }

    /// Names of the classes in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many layers dispatch tokens, and so the largest value of a token map.
    pub fn dispatching_layers(&self) -> usize {
        self.model.backbone.dispatched_parts()
    }

    /// Classifies `windows` clips of a video file or a folder of frames, spread over its time; by default as many dense
    /// clips as fit one after the other, or one clip of uniform segments.
    ///
    /// # Errors
    /// If the video cannot be read, or is too small for the transforms.
    pub fn predict(&self, path: &Path, windows: Option<usize>) -> Result<VideoPrediction> {
        let mut video = Video::open(path)?;
        let mut kept = Kept::default();
        let clips = video::windows(&self.list, video.frames(), windows);
        let mut found = Vec::new();
        for places in clips {
            let frames: Vec<usize> = places.iter().map(|&place| video.shown_at(place)).collect();
            let images = video.read(&frames, self.list.short_side)?;
            found.push(self.window(frames, &images, &mut kept)?);
        }
        let (frames, times) = (video.frames(), video.times().map(<[f64]>::to_vec));
        Ok(VideoPrediction { windows: found, frames, times, kept })
    }

    fn window(&self, frames: Vec<usize>, images: &[RgbImage], kept: &mut Kept) -> Result<Window> {
        let inputs = images.iter().map(|image| Ok(input(&self.pipeline, image)?.0));
        let clip = Tensor::cat(&inputs.collect::<Result<Vec<_>>>()?, 0)?;
        let on_device = clip.to_device(self.model.params.device())?;
        let features = self.model.backbone.forward_clips(&on_device, frames.len(), &Pass::Infer)?;
        kept.count(&features.kept)?;
        let logits = self.model.head.predict(&features, &[])?.remove(0);
        let token_maps = worked_grids(&features)?;
        Ok(Window { frames, logits, input: clip.to_device(&Device::Cpu)?, token_maps })
    }
}
