//! Opening what was trained: the folder of a run, or one self-contained file.

use std::path::{Path, PathBuf};

use candle_core::Device;
use rescatter::config::{Precision, load};
use rescatter::engine::Run;
use rescatter::engine::checkpoint::{Checkpoint, Meta, load_for_inference};
use rescatter::world::place_on_machine;
use rescatter::{Error, Result};

use crate::extension::EarlierHead;
use crate::task::class_names;
use crate::{Config, TaskModel, calibration};

/// Which checkpoint of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// With the best score on the validation set.
    #[default]
    Best,
    /// Where training stopped.
    Last,
}

/// A trained model, ready to predict.
pub struct Trained {
    /// The run's config with the overrides.
    pub config: Config,
    /// The model with the checkpoint's weights and thresholds.
    pub model: TaskModel,
    /// Names of the classes in the order of their numbers.
    pub classes: Vec<String>,
    /// The tasks that the model's was added to, with their heads.
    pub earlier: Vec<EarlierHead>,
    /// Steps of training behind the weights.
    pub step: u64,
}

impl Trained {
    /// Calibrates the thresholds if the config asks for a budget for which the checkpoint has none.
    ///
    /// # Errors
    /// If the training images cannot be read.
    pub fn calibrated(self) -> Result<Self> {
        calibration::ensure(&self.model, &self.config)?;
        Ok(self)
    }

    /// The same weights in the model of another `config`; parameters that it does not have are left out.
    ///
    /// # Errors
    /// If that model cannot be built, or has a parameter of another shape.
    pub(crate) fn rebuilt(&self, mut config: Config) -> Result<Self> {
        config.backbone.weights = None;
        let tasks: Vec<_> = self.earlier.iter().map(|head| head.task.clone()).collect();
        let (old, classes) = (&self.model, self.classes.clone());
        let (model, earlier) =
            TaskModel::added_to(&tasks, &config, classes.len(), old.params().device())?;
        for (name, _) in model.params().all() {
            if let Some(param) = old.params().get(&name) {
                model.params().set(&name, &param.var.as_detached_tensor())?;
            }
        }
        if let Some(thresholds) = old.backbone().thresholds() {
            model.backbone().set_thresholds(thresholds);
        }
        Ok(Self { config, model, classes, earlier, step: self.step })
    }

    /// Opens the folder of a run, a file that `rescatter weights export` wrote, or a config with the weights that it names;
    /// `overrides` change the config (`key.path=value`). A budget for which the checkpoint has no thresholds still needs
    /// [`Trained::calibrated`].
    ///
    /// # Errors
    /// If there is no run or no such checkpoint, or the frozen weights are not those that it was trained on.
    pub fn open(path: &Path, which: Which, overrides: &[String]) -> Result<Self> {
        if is_config(path) {
            let config: Config = load::load(path, overrides)?;
            let classes = class_names(&config)?;
            let model = TaskModel::new(&config, classes.len(), &device_of(&config)?)?;
            return Ok(Self { config, model, classes, earlier: Vec::new(), step: 0 });
        }
        let (config, checkpoint) = locate(path, which, overrides)?;
        let known = Checkpoint::read(&checkpoint)?.meta;
        let device = device_of(&config)?;
        let (model, earlier) =
            TaskModel::added_to(&known.earlier, &config, known.classes.len(), &device)?;
        let Meta { classes, step, .. } = match &model {
            TaskModel::Segmentation(model) => {
                load_for_inference(&checkpoint, model, &config.backbone)
            }
            TaskModel::Detection(model) => load_for_inference(&checkpoint, model, &config.backbone),
            TaskModel::Classification(model) => {
                load_for_inference(&checkpoint, model, &config.backbone)
            }
            TaskModel::Video(model) => load_for_inference(&checkpoint, model, &config.backbone),
        }?;
        Ok(Self { config, model, classes, earlier, step })
    }
}

/// Whether `path` is that of a config, by its extension.
pub fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// The config and the checkpoint file behind `path`.
fn locate(path: &Path, which: Which, overrides: &[String]) -> Result<(Config, PathBuf)> {
    if path.is_file() {
        let text = Checkpoint::read(path)?.meta.config;
        let mut config: Config = load::parse(&text, path, overrides)?;
        // The file holds the frozen weights as well.
        config.backbone.weights = None;
        return Ok((config, path.into()));
    }
    let run = Run::open(path)?;
    let config = load::load(&run.config_path(), overrides)?;
    let (file, other) = match which {
        Which::Best => (run.best_path(), run.last_path()),
        Which::Last => (run.last_path(), run.best_path()),
    };
    if file.is_file() {
        return Ok((config, file));
    }
    let error = Error::file(&file, "the run has no such checkpoint");
    Err(match (other.is_file(), which) {
        (true, Which::Best) => {
            error.with_hint("the run was not evaluated yet; take `--checkpoint last`")
        }
        (true, Which::Last) => error.with_hint("take `--checkpoint best`"),
        (false, _) => error.with_hint("the run has saved nothing yet; train it first"),
    })
}

/// The device of a config, which must be able to do the arithmetic that it asks for.
///
/// # Errors
/// If there is no such device, or it cannot.
pub fn device_of(config: &Config) -> Result<Device> {
    let device = device(&config.device)?;
    let precision = config.train.precision;
    if precision != Precision::F32 && device.is_cpu() {
        return Err(Error::usage(format!("`train.precision: {}` needs a GPU", precision.name()))
            .with_hint("take `train.precision: f32`, or name a GPU (`device: cuda:0`)"));
    }
    Ok(device)
}

/// The device that a config names: `auto` takes the first GPU if there is one that works; of several processes on a machine each
/// takes its own.
///
/// # Errors
/// If there is no such device.
pub fn device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(Device::new_cuda(place_on_machine()).unwrap_or(Device::Cpu)),
        _ => {
            let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            let number = number.ok_or_else(|| {
                Error::usage(format!("`device`: `{name}` is none of auto, cpu, cuda:N"))
            })?;
            Device::new_cuda(number).map_err(|error| {
                let text = error.to_string();
                // Behind the first line there may be a trace.
                let reason = match text.lines().next() {
                    // What stands in for the driver says so (tools/cuda/lazy.c).
                    Some(line) if line.contains("CUDA_ERROR_STUB_LIBRARY") => {
                        "there is no NVIDIA driver on this machine"
                    }
                    line => line.unwrap_or_default(),
                };
                Error::usage(format!("`device: {name}` cannot be used: {reason}"))
                    .with_hint("`device: cpu` works everywhere")
            })
        }
    }
}
