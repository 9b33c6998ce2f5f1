//! Thresholds for a budget, from training images as evaluation would show them.

use candle_core::{Device, Tensor};
use rescatter::backbone::Vit;
use rescatter::config::{EvalMode, Inference, OnError, SplitConfig, Task};
use rescatter::data::{self, Dataset, Sample};
use rescatter::dispatch::calibrate_clips;
use rescatter::engine::checkpoint::Thresholds;
use rescatter::rng::{Purpose, Rng};
use rescatter::{Error, Result};

use crate::images::pixels;
use crate::{Config, TaskModel};

/// Images that the thresholds are calibrated on: the share that they give on other images is off by about a percent.
const IMAGES: usize = 24;

/// Clips that they are calibrated on, several frames each.
const CLIPS: usize = 8;

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
        calibrated(model.backbone(), &images, share)?;
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
    let budget = |share| {
        let values = calibrated(vit, &images, share)?;
        // A checkpoint's JSON has no infinity.
        let finite = |value: f32| value.clamp(f32::MIN, f32::MAX);
        Ok(Thresholds { share, values: values.into_iter().map(finite).collect() })
    };
    shares.into_iter().map(budget).collect()
}

/// Each of `images` is one image, or the frames of one clip.
fn calibrated(vit: &Vit, images: &[Tensor], share: f64) -> candle_core::Result<Vec<f32>> {
    let frames = images.first().map_or(Ok(1), |clip| clip.dim(0))?;
    calibrate_clips(vit, images, frames, share)
}

/// Images evenly spread over the training set, with the transforms of the validation set, each `[1, 3, H, W]` on
/// `device`, or `[T, 3, H, W]` of clips; where evaluation slides a window, its middle one.
///
/// # Errors
/// If the set or an image cannot be read.
pub fn images(config: &Config, device: &Device) -> Result<Vec<Tensor>> {
    let count = if config.task == Task::Video { CLIPS } else { IMAGES };
    some(count, config, device)
}

/// Refuses a config whose calibration would fail, before its training: the set is opened and its first sample read.
///
/// # Errors
/// As [`budgets`].
pub fn check(model: &TaskModel, config: &Config) -> Result<()> {
    if model.backbone().dispatchers() > 0 {
        some(1, config, &Device::Cpu)?;
    }
    Ok(())
}

fn some(count: usize, config: &Config, device: &Device) -> Result<Vec<Tensor>> {
    let split = training_as_evaluated(config)?;
    match config.task {
        Task::Segmentation => {
            spread(data::segmentation_for_evaluation(&split)?.as_ref(), count, config, device)
        }
        Task::Detection => spread(data::detection(&split)?.as_ref(), count, config, device),
        Task::Classification => {
            spread(data::classification(&split)?.as_ref(), count, config, device)
        }
        Task::Video => spread(data::video(&split)?.as_ref(), count, config, device),
    }
}

/// The training set with the transforms of the validation set.
///
/// # Errors
/// If parts of the validation set have different transforms.
pub fn training_as_evaluated(config: &Config) -> Result<SplitConfig> {
    Ok(SplitConfig {
        transforms: config.data.val_transforms()?.to_vec(),
        ..without_transforms(&config.data.train)
    })
}

fn without_transforms(split: &SplitConfig) -> SplitConfig {
    let concat = split.concat.as_ref().map(|parts| parts.iter().map(without_transforms).collect());
    SplitConfig { concat, transforms: Vec::new(), ..split.clone() }
}

/// The sample at `start`, or the next one where it is broken and such are skipped.
fn first_whole<T: Send + 'static>(
    set: &dyn Dataset<Target = T>,
    start: usize,
    rng: &Rng,
) -> Result<Sample<T>> {
    let mut first = None;
    for index in (start..set.len()).chain(0..start) {
        match set.get(index, &mut rng.stream(Purpose::Augment, index as u64, 0)) {
            Ok(sample) => return Ok(sample),
            Err(error) if set.on_error(index) == OnError::Stop => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| Error::usage("the training set has no samples")))
}

fn spread<T: Send + 'static>(
    set: &dyn Dataset<Target = T>,
    count: usize,
    config: &Config,
    device: &Device,
) -> Result<Vec<Tensor>> {
    let rng = Rng::new(config.seed);
    let count = count.min(set.len());
    let image = |i: usize| {
        let sample = first_whole(set, i * set.len() / count, &rng)?;
        let (_, h, w) = sample.image.dim();
        let image = pixels(&sample.image, device)?;
        let (height, width) = match config.eval.mode {
            EvalMode::Slide { crop, .. } => (crop.min(h), crop.min(w)),
            EvalMode::Whole => (h, w),
        };
        let rows = image.narrow(2, (h - height) / 2, height)?;
        Ok(rows.narrow(3, (w - width) / 2, width)?.contiguous()?)
    };
    (0..count).map(image).collect()
}
