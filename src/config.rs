//! The YAML schema of a run. Every struct refuses unknown keys; defaults are those of the papers or of no effect.
//!
//! `Config<H>` is generic over the head's section, because the core never names a head: `rescatter-heads` supplies the
//! enum. Reading, overrides and error messages are in [`load`].

use serde::{Deserialize, Serialize};

mod backbone;
mod data;
mod dispatch;
pub mod load;
mod overrides;
mod train;
mod transforms;
mod tuning;
pub(crate) mod validate;

pub use backbone::{Arch, BackboneConfig, RelPosConfig, WindowConfig, WindowPadding};
pub use data::{
    ClassNames, CocoConfig, DataConfig, ImageFolderConfig, MaskFolderConfig, OnError, SplitConfig,
};
pub use dispatch::{
    DispatchConfig, Inference, NoiseConfig, RateSchedule, Select, TauSchedule, TomeConfig, Variant,
};
pub use train::{
    AdamWConfig, CosineConfig, EvalConfig, EvalMode, GroupConfig, LossConfig, OptimizerConfig,
    PolyConfig, Precision, ScheduleConfig, SgdConfig, TrainConfig,
};
pub use transforms::TransformConfig;
pub use tuning::{AdapterConfig, BackboneTuning, TuningConfig};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config<H> {
    /// Which kind of prediction.
    pub task: Task,
    /// Decides every random number of the run.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu` or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// The vision transformer.
    pub backbone: BackboneConfig,
    /// Which tokens work where.
    #[serde(default)]
    pub dispatch: DispatchConfig,
    /// What is trained besides the head.
    #[serde(default)]
    pub tuning: TuningConfig,
    /// The task's head.
    pub head: H,
    /// Images, labels and their transforms.
    pub data: DataConfig,
    /// Weights of the losses that the backbone adds.
    #[serde(default)]
    pub loss: LossConfig,
    /// How parameters move.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Length and rhythm of the training.
    pub train: TrainConfig,
    /// How predictions are made for evaluation.
    #[serde(default)]
    pub eval: EvalConfig,
}

/// The task of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A class for every pixel.
    Segmentation,
    /// Boxes and instance masks.
    Detection,
    /// A class for a clip.
    Video,
    /// A class for an image.
    Classification,
}

fn auto() -> String {
    "auto".into()
}
