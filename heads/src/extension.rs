//! Adding a task to a trained model (arXiv 2203.15243 §3): the run that is extended, what is taken over from it, and the
//! heads of the tasks that were there before. What they compute does not change, because nothing of theirs is trained and
//! the new task's tokens only read.

use std::path::Path;

use rescatter::config::{Inference, LossConfig, MemoryConfig, Task, TuningConfig, load};
use rescatter::engine::checkpoint::{EarlierTask, Thresholds};
use rescatter::head::FeatureSpec;
use rescatter::params::{Keep, Scope};
use rescatter::{Error, Result};

use crate::classifier::Pool;
use crate::run::Which;
use crate::task::ignore_index;
use crate::{ClassifierHead, Config, HeadConfig, Labels, SegmentationHead, TaskModel, Trained};

/// A task before the last one.
pub struct EarlierHead {
    /// Config and classes of its run.
    pub task: EarlierTask,
    /// Its head, which is not trained any more.
    pub head: AnyHead,
}

/// A head that can stand beside added tasks.
#[allow(clippy::large_enum_variant, reason = "a process holds few of them")]
pub enum AnyHead {
    /// A class for every pixel.
    Segmentation(SegmentationHead),
    /// A class for an image.
    Classification(ClassifierHead),
}

/// The configs of earlier tasks, and their checkpoint entries.
pub(crate) fn configs(earlier: &[EarlierTask]) -> Result<Vec<(Config, EarlierTask)>> {
    let parsed = |(t, task): (usize, &EarlierTask)| {
        let name = format!("config of task {t}");
        Ok((load::parse(&task.config, Path::new(&name), &[])?, task.clone()))
    };
    earlier.iter().enumerate().map(parsed).collect()
}

/// Their heads on the backbone of `model`, with parameters that are kept.
pub(crate) fn heads(
    earlier: Vec<(Config, EarlierTask)>,
    model: &TaskModel,
) -> Result<Vec<EarlierHead>> {
    let (root, spec) = (model.params().root().keeping(Keep::Trained), model.backbone().spec());
    let head = |(t, (config, task)): (usize, (Config, EarlierTask))| {
        Ok(EarlierHead { head: head(t, &config, task.classes.len(), &spec, &root)?, task })
    };
    earlier.into_iter().enumerate().map(head).collect()
}

fn head(
    task: usize,
    config: &Config,
    classes: usize,
    spec: &FeatureSpec,
    root: &Scope,
) -> Result<AnyHead> {
    Ok(match &config.head {
        HeadConfig::Classifier(head) if task > 0 => {
            AnyHead::Classification(ClassifierHead::added(task, head, spec, classes, root)?)
        }
        HeadConfig::Classifier(head) => {
            AnyHead::Classification(ClassifierHead::new(head, spec, classes, root)?)
        }
        HeadConfig::Upernet(_) | HeadConfig::Linear(_) => {
            let labels = Labels { classes, ignore_index: ignore_index(&config.data.train) };
            AnyHead::Segmentation(SegmentationHead::new(&config.head, spec, labels, root)?)
        }
        HeadConfig::MaskRcnn(_)
        | HeadConfig::TemporalQuery(_)
        | HeadConfig::TemporalTransformer(_) => return Err(not_extensible()),
    })
}

fn not_extensible() -> Error {
    Error::usage("no task can be added to a detector or a video model")
        .with_hint("classifiers and segmentation models can be extended")
}

/// The model that a run adds its task to.
pub struct Base {
    trained: Trained,
    earlier: Vec<EarlierTask>,
}

impl Base {
    /// The model that `config` extends, if it does; `config` then gets the memory of the tasks before its own, and no
    /// losses of dispatchers, which are not trained.
    ///
    /// # Errors
    /// If there is no such run, the new task is no classification by class token with memory, or `config` differs from
    /// the run in a section that is taken over.
    pub fn open(config: &mut Config) -> Result<Option<Self>> {
        let Some(path) = config.extends.clone() else { return Ok(None) };
        let trained = Trained::open(&path, Which::Best, &[])?.calibrated()?;
        if matches!(trained.model, TaskModel::Detection(_) | TaskModel::Video(_)) {
            return Err(not_extensible());
        }
        match &config.head {
            HeadConfig::Classifier(head)
                if head.pool == Pool::Cls && config.task == Task::Classification => {}
            _ => {
                return Err(Error::usage(
                    "a task is added with a class token of its own: it needs `task: classification` and `head: { classifier: { pool: cls } }`",
                ));
            }
        }
        let Some(memory) = &config.tuning.memory else {
            return Err(Error::usage("an added task needs a memory")
                .with_hint("set `tuning.memory`, e.g. `{ tokens: 5 }`"));
        };
        let memory = MemoryConfig { earlier: rows_of(&trained.config.tuning), ..memory.clone() };
        config.tuning.memory = Some(memory);
        same_model(config, &trained.config, &path)?;
        config.loss = LossConfig { rate: 0.0, complete: 0.0, distill: 0.0 };
        let task = EarlierTask {
            config: load::to_yaml(&trained.config)?,
            classes: trained.classes.clone(),
        };
        let before = trained.earlier.iter().map(|head| head.task.clone());
        let earlier: Vec<_> = before.chain([task]).collect();
        tracing::info!(
            "task {} is added to those of {}; their weights are kept as they are",
            earlier.len(),
            path.display()
        );
        Ok(Some(Self { trained, earlier }))
    }

    /// The tasks before the new one.
    pub fn earlier(&self) -> &[EarlierTask] {
        &self.earlier
    }

    /// Gives all weights and the calibrated thresholds to `model`.
    ///
    /// # Errors
    /// If it is not built on this one.
    pub fn hand_over(&self, model: &TaskModel) -> Result<()> {
        for (name, param) in self.trained.model.params().all() {
            model.params().set(&name, &param.var.as_detached_tensor())?;
        }
        if let Some(thresholds) = self.trained.model.backbone().thresholds() {
            model.backbone().set_thresholds(thresholds);
        }
        Ok(())
    }

    /// The calibrated thresholds, where its dispatchers use any: they stay, whatever the new task's images are.
    pub fn thresholds(&self) -> Vec<Thresholds> {
        let share = match self.trained.config.dispatch.inference {
            Inference::Calibrated(share) => Some(share),
            Inference::Threshold | Inference::TopK(_) => None,
        };
        let values = self.trained.model.backbone().thresholds();
        share.zip(values).map(|(share, values)| Thresholds { share, values }).into_iter().collect()
    }
}

/// The memory rows of every task of a model; 0 where it has none.
fn rows_of(tuning: &TuningConfig) -> Vec<usize> {
    let Some(memory) = &tuning.memory else { return vec![0] };
    memory.earlier.iter().copied().chain([memory.tokens]).collect()
}

/// An error at the first value in which the sections that are taken over differ.
fn same_model(config: &Config, base: &Config, path: &Path) -> Result<()> {
    let own = config.tuning.memory.clone();
    let memory = match (&base.tuning.memory, own) {
        (Some(old), Some(own)) => {
            Some(MemoryConfig { tokens: own.tokens, earlier: own.earlier, ..old.clone() })
        }
        (_, own) => own,
    };
    let expected = Config {
        backbone: base.backbone.clone(),
        dispatch: base.dispatch.clone(),
        tuning: TuningConfig { memory, ..base.tuning.clone() },
        ..config.clone()
    };
    match load::first_difference(&expected, config)? {
        None => Ok(()),
        Some(difference) => Err(Error::file(path, format!("cannot be extended: {difference}"))
            .with_hint("copy `backbone`, `dispatch` and `tuning` from the run's config.yaml and change `tuning.memory` alone")),
    }
}
