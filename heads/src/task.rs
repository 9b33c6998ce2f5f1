//! From a config to the model of its task: the one place that names every task.

use std::path::Path;

use candle_core::Device;
use rescatter::backbone::{Dims, Vit};
use rescatter::config::{CocoConfig, MaskFolderConfig, ScheduleConfig, SplitConfig, Task};
use rescatter::data::coco::Annotations;
use rescatter::engine::checkpoint::EarlierTask;
use rescatter::model::Model;
use rescatter::params::ParamStore;
use rescatter::weights::{LoadOptions, load_pretrained};
use rescatter::world::World;
use rescatter::{Error, Result};

use crate::extension::{self, EarlierHead};
use crate::{ClassifierHead, Config, HeadConfig, Labels, MaskRcnn, SegmentationHead, TemporalHead};

/// A model with the head of its task.
#[allow(clippy::large_enum_variant, reason = "a process holds one of it")]
pub enum TaskModel {
    /// A class for every pixel.
    Segmentation(Model<SegmentationHead>),
    /// Boxes and masks of objects.
    Detection(Model<MaskRcnn>),
    /// A class for an image.
    Classification(Model<ClassifierHead>),
    /// A class for a clip.
    Video(Model<TemporalHead>),
}

impl TaskModel {
    /// The model of `config` for `classes` classes on `device`, with the pretrained weights that the config names.
    ///
    /// # Errors
    /// If the head is another task's, the sizes do not fit together, or the weights cannot be loaded.
    pub fn new(config: &Config, classes: usize, device: &Device) -> Result<Self> {
        Ok(Self::added_to(&[], config, classes, device)?.0)
    }

    /// [`TaskModel::new`] for a task that was added to `earlier` ones, and their heads.
    ///
    /// # Errors
    /// As [`TaskModel::new`]; or if `config` is not that of a task added to so many.
    pub fn added_to(
        earlier: &[EarlierTask],
        config: &Config,
        classes: usize,
        device: &Device,
    ) -> Result<(Self, Vec<EarlierHead>)> {
        let known = config.tuning.memory.as_ref().map_or(0, |memory| memory.earlier.len());
        if known != earlier.len() || config.extends.is_some() && earlier.is_empty() {
            return Err(Error::usage(
                "the config is that of a task added to others, which only its run knows",
            )
            .with_hint("`train` opens the run that `extends` names; afterwards open the new run"));
        }
        let earlier = extension::configs(earlier)?;
        let first = earlier.first().map_or(&config.head, |(config, _)| &config.head);
        let reads = first.reads(Dims::new(&config.backbone)?.depth);
        let model = match (config.task, &config.head) {
            (Task::Segmentation, HeadConfig::Upernet(_) | HeadConfig::Linear(_)) => {
                let labels = Labels { classes, ignore_index: ignore_index(&config.data.train) };
                Self::Segmentation(Model::new(config, &reads, device, |spec, root| {
                    SegmentationHead::new(&config.head, &spec, labels, root)
                })?)
            }
            (Task::Detection, HeadConfig::MaskRcnn(head)) => {
                head.check()?;
                Self::Detection(Model::new(config, &reads, device, |spec, root| {
                    MaskRcnn::new(head, &spec, classes, root)
                })?)
            }
            (Task::Classification, HeadConfig::Classifier(head)) => {
                // An added task has a class token of its own.
                if earlier.is_empty() {
                    head.check(&config.backbone)?;
                }
                Self::Classification(Model::new(
                    config,
                    &reads,
                    device,
                    |spec, root| match earlier.len() {
                        0 => ClassifierHead::new(head, &spec, classes, root),
                        task => ClassifierHead::added(task, head, &spec, classes, root),
                    },
                )?)
            }
            (Task::Video, HeadConfig::TemporalQuery(_) | HeadConfig::TemporalTransformer(_)) => {
                Self::Video(Model::new(config, &reads, device, |spec, root| {
                    TemporalHead::new(&config.head, &spec, classes, root)
                })?)
            }
            (task, head) => {
                let task = format!("{task:?}").to_lowercase();
                return Err(Error::usage(format!(
                    "`head.{}` is no head of the task `{task}`",
                    head.name()
                ))
                .with_hint(
                    "segmentation has `upernet` and `linear`, detection `mask_rcnn`, classification `classifier`, \
                     video `temporal_query` and `temporal_transformer`",
                ));
            }
        };
        if config.dispatch.tome.is_some() && !config.head.reads_prefix() {
            return Err(Error::usage(
                "`dispatch.tome` merges patches, so the head must read the class token",
            )
            .with_hint("set `head.classifier.pool: cls`"));
        }
        let heads = extension::heads(earlier, &model)?;
        if let Some(path) = &config.backbone.weights {
            model.load_backbone(path, config.backbone.pos_embed_grid)?;
        }
        Ok((model, heads))
    }

    fn load_backbone(&self, path: &Path, grid: [usize; 2]) -> Result<()> {
        let report = load_pretrained(path, self.params(), &LoadOptions::backbone(grid))?;
        tracing::info!("{report}");
        Ok(())
    }

    /// All parameters by their checkpoint names.
    pub fn params(&self) -> &ParamStore {
        match self {
            Self::Segmentation(model) => &model.params,
            Self::Detection(model) => &model.params,
            Self::Classification(model) => &model.params,
            Self::Video(model) => &model.params,
        }
    }

    /// The backbone.
    pub fn backbone(&self) -> &Vit {
        match self {
            Self::Segmentation(model) => &model.backbone,
            Self::Detection(model) => &model.backbone,
            Self::Classification(model) => &model.backbone,
            Self::Video(model) => &model.backbone,
        }
    }
}

/// The label that counts nowhere in the sets of `split`; 255 where there are no label maps.
pub(crate) fn ignore_index(split: &SplitConfig) -> u32 {
    label_maps(split).map_or(255, |config| config.ignore_index)
}

/// The first COCO reader.
fn coco(split: &SplitConfig) -> Option<&CocoConfig> {
    split.coco.as_ref().or_else(|| split.concat.iter().flatten().find_map(coco))
}

/// The first reader of label maps.
fn label_maps(split: &SplitConfig) -> Option<&MaskFolderConfig> {
    let parts = || split.concat.iter().flatten().find_map(label_maps);
    split.ade20k.as_ref().or(split.coco_stuff.as_ref()).or_else(parts)
}

/// Refuses label maps whose pixels that count nowhere have different numbers: the model knows one of them.
///
/// # Errors
/// Names the keys of two that differ.
pub fn check_ignored_labels(config: &Config) -> Result<()> {
    let mut found = Vec::new();
    ignored_labels(&config.data.train, "data.train", &mut found);
    ignored_labels(&config.data.val, "data.val", &mut found);
    let Some((first_key, first)) = found.first() else { return Ok(()) };
    match found.iter().find(|(_, label)| label != first) {
        None => Ok(()),
        Some((key, label)) => {
            Err(Error::usage(format!("`{first_key}` is {first}, but `{key}` is {label}"))
                .with_hint("give both the same number; `label_map` changes the labels of a set"))
        }
    }
}

/// The ignore index of every reader of label maps, with its key.
fn ignored_labels(split: &SplitConfig, key: &str, found: &mut Vec<(String, u32)>) {
    for (name, maps) in [("ade20k", &split.ade20k), ("coco_stuff", &split.coco_stuff)] {
        let label = maps.as_ref().map(|maps| maps.ignore_index);
        found.extend(label.map(|label| (format!("{key}.{name}.ignore_index"), label)));
    }
    for (i, part) in split.concat.iter().flatten().enumerate() {
        ignored_labels(part, &format!("{key}.concat.{i}"), found);
    }
}

/// The most processes that a run is thought to have begun on.
const MOST_PROCESSES: usize = 4096;

/// Lengths that `config` gives in epochs, as iterations on the processes of `world`: the training set is opened to count its
/// samples. A run that was `begun` keeps the lengths that it has, on however many processes it goes on.
///
/// # Errors
/// If the set cannot be opened.
pub fn resolve_epochs(config: &mut Config, world: World, begun: Option<&Config>) -> Result<()> {
    let warmup = match &config.schedule {
        ScheduleConfig::Poly(schedule) => schedule.warmup_epochs,
        ScheduleConfig::Cosine(schedule) => schedule.warmup_epochs,
    };
    if config.train.epochs.or(warmup).is_none() {
        return Ok(());
    }
    let split = &config.data.train;
    let samples = match config.task {
        Task::Segmentation => rescatter::data::segmentation(split)?.len(),
        Task::Detection => rescatter::data::detection(split)?.len(),
        Task::Classification => rescatter::data::classification(split)?.len(),
        Task::Video => rescatter::data::video(split)?.len(),
    };
    let began = begun.and_then(|run| processes_of(run, config, samples, world.size));
    let processes = began.unwrap_or(world.size);
    config.resolve_epochs(samples, processes);
    if processes != world.size {
        tracing::warn!(
            "the run keeps the steps that its epochs had on {processes} processes; now there are {}",
            world.size
        );
    }
    Ok(())
}

/// On how many processes, as `now` if possible, the epochs of `config` have the lengths of `run`; `None` where they are
/// others on any number.
fn processes_of(run: &Config, config: &Config, samples: usize, now: usize) -> Option<usize> {
    std::iter::once(now).chain(1..=MOST_PROCESSES).find(|&processes| {
        let mut resolved = config.clone();
        resolved.resolve_epochs(samples, processes);
        resolved.train.iterations == run.train.iterations && resolved.schedule == run.schedule
    })
}

/// The names of the classes that `config` trains on, in the order of their numbers. Image folders are listed only where
/// the config does not name their classes.
///
/// # Errors
/// If the names cannot be read.
pub fn class_names(config: &Config) -> Result<Vec<String>> {
    if let Some(coco) = coco(&config.data.train) {
        return Ok(Annotations::read(&coco.annotations)?.class_names());
    }
    if config.task == Task::Video {
        return rescatter::data::video::class_names_of(&config.data.train);
    }
    match label_maps(&config.data.train) {
        Some(maps) => rescatter::data::class_names(&maps.classes),
        None => Ok(rescatter::data::classification(&config.data.train)?.classes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overrides: &[&str]) -> Config {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/cifar10_1k_vit_s14_dyt.yaml");
        let overrides: Vec<String> = overrides.iter().map(|&o| o.into()).collect();
        rescatter::config::load::load(path.as_ref(), &overrides).unwrap()
    }

    #[test]
    fn a_run_keeps_its_length_on_another_number_of_processes() {
        let mut run = config(&["train.epochs=8"]);
        run.resolve_epochs(1000, 3);
        // 8 · 1000 / (3 · 32).
        assert_eq!(run.train.iterations, Some(83));
        assert_eq!(processes_of(&run, &config(&["train.epochs=8"]), 1000, 1), Some(3));
        assert_eq!(processes_of(&run, &config(&["train.epochs=9"]), 1000, 1), None);
    }

    #[test]
    fn no_prompt_stands_in_for_the_class_token() {
        let small = "backbone={embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4], cls_token: false}";
        let new = |pool: &str| {
            let pool = format!("head.classifier.pool={pool}");
            let config = config(&[small, "tuning={vpt: {tokens: 2}}", &pool]);
            TaskModel::new(&config, 10, &Device::Cpu).map(|_| ())
        };
        let error = new("cls").unwrap_err();
        assert!(error.to_string().contains("`backbone.cls_token` is false"), "{error}");
        assert!(error.hint().unwrap().contains("head.classifier.pool: mean"));
        new("mean").unwrap();
    }
}
