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
        // The dense head of the first task reads maps; classifiers read none.
        let first = earlier.first().map_or(&config.head, |(config, _)| &config.head);
        let taps = first.taps(Dims::new(&config.backbone)?.depth);
        let model = match (config.task, &config.head) {
            (Task::Segmentation, HeadConfig::Upernet(_) | HeadConfig::Linear(_)) => {
                let labels = Labels { classes, ignore_index: ignore_index(&config.data.train) };
                Self::Segmentation(Model::new(config, &taps, device, |spec, root| {
                    SegmentationHead::new(&config.head, &spec, labels, root)
                })?)
            }
            (Task::Detection, HeadConfig::MaskRcnn(head)) => {
                head.check()?;
                Self::Detection(Model::new(config, &taps, device, |spec, root| {
                    MaskRcnn::new(head, &spec, classes, root)
                })?)
            }
            (Task::Classification, HeadConfig::Classifier(head)) => {
                Self::Classification(Model::new(config, &taps, device, |spec, root| match earlier
                    .len()
                {
                    0 => ClassifierHead::new(head, &spec, classes, root),
                    task => ClassifierHead::added(task, head, &spec, classes, root),
                })?)
            }
            (Task::Video, HeadConfig::TemporalQuery(_) | HeadConfig::TemporalTransformer(_)) => {
                Self::Video(Model::new(config, &taps, device, |spec, root| {
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

/// Lengths that `config` gives in epochs, as iterations: the training set is opened to count its samples.
///
/// # Errors
/// If the set cannot be opened.
pub fn resolve_epochs(config: &mut Config) -> Result<()> {
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
    config.resolve_epochs(samples);
    Ok(())
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
