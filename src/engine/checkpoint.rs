//! The checkpoint of a run: one file with what training changed, and how it got there.
//!
//! Frozen weights are not copied: they are read again from the backbone's file, whose SHA-256 is recorded; those that
//! never came from a file follow from the seed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{LossScale, ema, optim};
use crate::config::{BackboneConfig, Inference, ScheduleConfig};
use crate::model::Model;
use crate::params::{Param, ParamStore, Role};
use crate::weights::checkpoint::{self, Metadata, Tensors};
use crate::weights::sha256;
use crate::{Error, Result};

/// The key of the file's metadata below which [`Meta`] lies as JSON.
const KEY: &str = "rescatter";

/// Everything in a checkpoint that is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this structure.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// What scales the next step's loss, of a training in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Training samples read by then, over all processes and micro-batches; files of earlier versions do not say.
    #[serde(default)]
    pub samples: Option<u64>,
    /// Steps of the whole training.
    pub iterations: u64,
    /// Seed of every random number.
    pub seed: u64,
    /// The schedule that the step belongs to.
    pub schedule: ScheduleConfig,
    /// Calibrated thresholds for several budgets, of the weights at the last evaluation; see [`Meta::thresholds_for`].
    pub thresholds: Vec<Thresholds>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// The step of the last evaluation, or of the weights that thresholds were last calibrated for.
    pub evaluated: Option<u64>,
    /// Where the frozen weights are.
    pub backbone: Option<BackboneFile>,
    /// Names of the classes in the order of their numbers.
    pub classes: Vec<String>,
    /// The tasks that this one was added to, the first one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierTask>,
    /// Time spent on training so far.
    pub seconds: f64,
    /// The resolved config as YAML.
    pub config: String,
}

impl Meta {
    /// Whether the thresholds are those of the weights: training went on after the last evaluation otherwise. A model that
    /// a task is added to keeps its own all along.
    fn thresholds_hold(&self) -> bool {
        self.evaluated == Some(self.step) || !self.earlier.is_empty()
    }

    /// The thresholds with which the weights meet the budget `share`, where they are known.
    pub fn thresholds_for(&self, share: f64) -> Option<&Thresholds> {
        let meets = |known: &&Thresholds| (known.share - share).abs() < 1e-9;
        self.thresholds.iter().find(meets).filter(|_| self.thresholds_hold())
    }

    /// Stores thresholds that were `found` for the weights, in place of others for that budget and of those for earlier
    /// weights.
    pub fn store_thresholds(&mut self, found: Thresholds) {
        let hold = self.thresholds_hold();
        self.thresholds.retain(|known| hold && (known.share - found.share).abs() >= 1e-9);
        self.thresholds.push(found);
        self.evaluated = Some(self.step);
    }
}

/// A task that a model was trained for before another one was added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EarlierTask {
    /// The config of its run as YAML.
    pub config: String,
    /// Names of its classes in the order of their numbers.
    pub classes: Vec<String>,
}

/// Thresholds that meet one budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// The share of tokens that stays active.
    pub share: f64,
    /// One per dispatcher.
    pub values: Vec<f32>,
}

/// An evaluation's main score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Name of the score.
    pub name: String,
    /// Its value.
    pub score: f64,
    /// Steps done by then.
    pub step: u64,
}

/// The file of the frozen weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackboneFile {
    /// As the config names it.
    pub path: PathBuf,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
}

impl BackboneFile {
    /// The file of `config`, if `params` hold anything that only that file knows.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(config: &BackboneConfig, params: &ParamStore) -> Result<Option<Self>> {
        match &config.weights {
            Some(path) if !params.with_role(Role::Frozen).is_empty() => {
                Ok(Some(Self { path: path.clone(), sha256: sha256(path)? }))
            }
            _ => Ok(None),
        }
    }
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// What is not a tensor.
    pub meta: Meta,
    tensors: Tensors,
}

impl Checkpoint {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// If it is missing, damaged, or not the checkpoint of a run.
    pub fn read(path: &Path) -> Result<Self> {
        let (tensors, metadata) = checkpoint::read(path)?;
        let text = metadata.get(KEY).ok_or_else(|| {
            Error::file(path, "holds weights, but is not the checkpoint of a run")
                .with_hint("`backbone.weights` takes pretrained files")
        })?;
        let meta = serde_json::from_str(text).map_err(|e| {
            Error::file(path, format!("its metadata is not that of this version: {e}"))
        })?;
        Ok(Self { path: path.into(), meta, tensors })
    }

    /// The tensors of the optimizer and the averages, for [`optim::Optimizer::load_state`] and [`ema::Ema::load_state`].
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Whether the frozen weights that were loaded for `config` are those that this checkpoint was trained on.
    ///
    /// # Errors
    /// If they are not, or their file cannot be read.
    pub fn check_backbone(&self, config: &BackboneConfig) -> Result<()> {
        let Some(known) = &self.meta.backbone else { return Ok(()) };
        let path = config.weights.as_deref().unwrap_or(&known.path);
        let found = sha256(path)?;
        if found == known.sha256 {
            return Ok(());
        }
        let reason = format!(
            "is not the backbone that {} was trained on: its SHA-256 is {found}, expected {}",
            self.path.display(),
            known.sha256
        );
        Err(Error::file(path, reason).with_hint(format!(
            "give the file that was `{}` with `backbone.weights=…`",
            known.path.display()
        )))
    }

    /// Puts the tensors into `params`: all that training changed, and frozen ones where the file holds them (it is then
    /// self-contained).
    ///
    /// # Errors
    /// One error for all that does not fit.
    pub fn restore(&self, params: &ParamStore, source: Source) -> Result<()> {
        let all = params.all();
        self.fits(&all)?;
        for (name, _) in &all {
            let average = self.tensors.get(&format!("{}{name}", ema::PREFIX));
            let value =
                average.filter(|_| source == Source::Averaged).or_else(|| self.tensors.get(name));
            if let Some(value) = value {
                params.set(name, value)?;
            }
        }
        Ok(())
    }

    fn fits(&self, params: &[(String, Param)]) -> Result<()> {
        let missing = params
            .iter()
            .filter(|(name, param)| param.role != Role::Frozen && !self.tensors.contains_key(name));
        let reshaped = params.iter().filter_map(|(name, param)| {
            let (found, wanted) = (self.tensors.get(name)?.dims(), param.var.dims());
            let text = || format!("`{name}` is {found:?} in the file and {wanted:?} in the model");
            (found != wanted).then(text)
        });
        let known: BTreeSet<&str> = params.iter().map(|(name, _)| name.as_str()).collect();
        let own = |name: &str| name.starts_with(optim::PREFIX) || name.starts_with(ema::PREFIX);
        let extra = self.tensors.keys().filter(|name| !own(name) && !known.contains(name.as_str()));
        let faults = [
            few("missing", missing.map(|(name, _)| format!("`{name}`")).collect()),
            few("of another shape", reshaped.collect()),
            few("not in the model", extra.map(|name| format!("`{name}`")).collect()),
        ];
        let faults: Vec<String> = faults.into_iter().flatten().collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::file(
            &self.path,
            format!("is the checkpoint of another model: tensors {}", faults.join(", ")),
        )
        .with_hint("use the config.yaml that lies beside the checkpoint"))
    }
}

/// `3 missing (the first …)`; nothing for no names.
fn few(what: &str, names: Vec<String>) -> Option<String> {
    let first = names.first()?;
    let more = if names.len() > 1 { " …" } else { "" };
    Some(format!("{} {what} ({first}{more})", names.len()))
}

/// Which weights a checkpoint gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Those that training continues with.
    Live,
    /// The moving averages where the run kept them, which is what is evaluated.
    Averaged,
}

/// Writes the trained tensors and statistics of `params` with `beside` (the states of optimizer and averages).
///
/// # Errors
/// If the file cannot be written; an older one then stays as it was.
pub fn save(path: &Path, params: &ParamStore, beside: Tensors, meta: &Meta) -> Result<()> {
    let mut tensors = beside;
    for (name, param) in params.all() {
        if param.role != Role::Frozen {
            tensors.insert(name, param.var.as_detached_tensor());
        }
    }
    write(path, &tensors, meta)
}

/// Writes all of `params`, the frozen ones too: a file that needs no other one.
///
/// # Errors
/// If the file cannot be written; an older one then stays as it was.
pub fn export(path: &Path, params: &ParamStore, meta: &Meta) -> Result<()> {
    let tensor = |param: Param| param.var.as_detached_tensor();
    let tensors = params.all().into_iter().map(|(name, param)| (name, tensor(param))).collect();
    write(path, &tensors, &Meta { backbone: None, ..meta.clone() })
}

fn write(path: &Path, tensors: &Tensors, meta: &Meta) -> Result<()> {
    let text = serde_json::to_string(meta).map_err(Error::usage)?;
    checkpoint::write(path, tensors, &Metadata::from([(KEY.into(), text)]))
}

/// Prepares `model`, whose frozen weights were loaded, for inference with the checkpoint `path`: weights (averaged ones
/// where the run kept them), statistics, and the thresholds of the budget that the model's config asks for. If the
/// checkpoint has none for that budget, the model still [needs them](crate::backbone::Vit::needs_thresholds).
///
/// # Errors
/// If the checkpoint or the backbone's file is another model's.
pub fn load_for_inference<H>(
    path: &Path,
    model: &Model<H>,
    config: &BackboneConfig,
) -> Result<Meta> {
    let checkpoint = Checkpoint::read(path)?;
    checkpoint.check_backbone(config)?;
    checkpoint.restore(&model.params, Source::Averaged)?;
    if let Inference::Calibrated(share) = model.backbone.dispatch().inference
        && let Some(thresholds) = checkpoint.meta.thresholds_for(share)
    {
        model.backbone.set_thresholds(thresholds.values.clone());
    }
    Ok(checkpoint.meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After `step` steps, with thresholds for ½ and ¼ found after the sixth.
    fn meta(step: u64) -> Meta {
        let thresholds = |share, value| Thresholds { share, values: vec![value] };
        Meta {
            format: 1,
            step,
            loss_scale: None,
            samples: None,
            iterations: 9,
            seed: 0,
            schedule: ScheduleConfig::default(),
            thresholds: vec![thresholds(0.5, 1.0), thresholds(0.25, 2.0)],
            best: None,
            evaluated: Some(6),
            backbone: None,
            classes: Vec::new(),
            earlier: Vec::new(),
            seconds: 0.0,
            config: String::new(),
        }
    }

    /// The one threshold for each of the shares ½ and ¼.
    fn known(meta: &Meta) -> [Option<f32>; 2] {
        [0.5, 0.25].map(|share| meta.thresholds_for(share).map(|found| found.values[0]))
    }

    #[test]
    fn thresholds_are_of_the_weights_that_they_were_found_for() {
        assert_eq!(known(&meta(6)), [Some(1.0), Some(2.0)]);
        assert_eq!(known(&meta(7)), [None, None]);
        let task = EarlierTask { config: String::new(), classes: Vec::new() };
        assert_eq!(known(&Meta { earlier: vec![task], ..meta(7) }), [Some(1.0), Some(2.0)]);
    }

    #[test]
    fn thresholds_that_were_found_anew_take_the_place_of_old_ones() {
        let stored = |step| {
            let mut meta = meta(step);
            meta.store_thresholds(Thresholds { share: 0.5, values: vec![3.0] });
            known(&meta)
        };
        assert_eq!((stored(6), stored(7)), ([Some(3.0), Some(2.0)], [Some(3.0), None]));
    }
}
