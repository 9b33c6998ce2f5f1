//! Thresholds for a budget, from training images as evaluation would show them.

use candle_core::{Device, Tensor};
use rescatter::config::{EvalMode, Inference, SplitConfig, Task};
use rescatter::data::{self, Dataset};
use rescatter::dispatch::calibrate;
use rescatter::engine::checkpoint::Thresholds;
use rescatter::rng::{Purpose, Rng};
use rescatter::{Error, Result};

use crate::{Config, TaskModel};

/// Images that the thresholds are calibrated on: the share that they give on other images is off by about a percent.
const IMAGES: usize = 24;

/// Calibrates the model if its config asks for a calibrated budget and it has no thresholds for it.
///
/// # Errors
/// If the training images cannot be read.
pub fn ensure(model: &TaskModel, config: &Config) -> Result<()> {
    let Inference::Calibrated(share) = model.backbone().dispatch().inference else { return Ok(()) };
    if model.backbone().needs_thresholds() {
        tracing::info!(
            "calibrating the thresholds on {IMAGES} training images for a share of {share}"
        );
        let images = images(config, model.params().device())?;
        calibrate(model.backbone(), &images, share)?;
    }
    Ok(())
}

/// Thresholds for the target rate and for the budget of `dispatch.inference`, with which the model then goes on; nothing
/// for a model without learned dispatchers. Deterministic.
///
/// # Errors
/// If the training images cannot be read.
pub fn budgets(model: &TaskModel, config: &Config) -> Result<Vec<Thresholds>> {
    let vit = model.backbone();
    if vit.dispatchers() == 0 {
        return Ok(Vec::new());
    }
    let mut shares = vec![config.dispatch.target_rate];
    match config.dispatch.inference {
        Inference::Calibrated(share) if share != shares[0] => shares.push(share),
        _ => {}
    }
    let images = images(config, model.params().device())?;
    let calibrated = |share| Ok(Thresholds { share, values: calibrate(vit, &images, share)? });
    shares.into_iter().map(calibrated).collect()
}

/// Images evenly spread over the training set, with the transforms of the validation set, each `[1, 3, H, W]` on
/// `device`; where evaluation slides a window, its middle one.
///
/// # Errors
/// If the set or an image cannot be read.
pub fn images(config: &Config, device: &Device) -> Result<Vec<Tensor>> {
    let split = training_as_evaluated(config);
    match config.task {
        Task::Segmentation => {
            spread(data::segmentation_for_evaluation(&split)?.as_ref(), config, device)
        }
        Task::Detection => spread(data::detection(&split)?.as_ref(), config, device),
        Task::Classification => spread(data::classification(&split)?.as_ref(), config, device),
        task => Err(Error::usage(format!("calibration of the task {task:?} is not known"))),
    }
}

/// The training set with the transforms of the validation set.
pub fn training_as_evaluated(config: &Config) -> SplitConfig {
    SplitConfig {
        transforms: config.data.val.transforms.clone(),
        ..without_transforms(&config.data.train)
    }
}

fn without_transforms(split: &SplitConfig) -> SplitConfig {
    let concat = split.concat.as_ref().map(|parts| parts.iter().map(without_transforms).collect());
    SplitConfig { concat, transforms: Vec::new(), ..split.clone() }
}

fn spread<T: Send + 'static>(
    set: &dyn Dataset<Target = T>,
    config: &Config,
    device: &Device,
) -> Result<Vec<Tensor>> {
    let rng = Rng::new(config.seed);
    let count = IMAGES.min(set.len());
    let image = |i: usize| {
        let index = i * set.len() / count;
        let sample = set.get(index, &mut rng.stream(Purpose::Augment, index as u64, 0))?;
        let (c, h, w) = sample.image.dim();
        let image =
            Tensor::from_iter(sample.image.iter().copied(), device)?.reshape((1, c, h, w))?;
        let (height, width) = match config.eval.mode {
            EvalMode::Slide { crop, .. } => (crop.min(h), crop.min(w)),
            EvalMode::Whole => (h, w),
        };
        let rows = image.narrow(2, (h - height) / 2, height)?;
        Ok(rows.narrow(3, (w - width) / 2, width)?.contiguous()?)
    };
    (0..count).map(image).collect()
}
