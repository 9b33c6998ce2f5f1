//! The YAML schema of a run. Every struct refuses unknown keys; defaults are those of the papers or of no effect.
//!
//! `Config<H>` is generic over the head's section, because the core never names a head: `rescatter-heads` supplies the
//! enum. Reading, overrides and error messages are in [`load`].

use std::path::PathBuf;

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
mod vtab;

pub use backbone::{Arch, BackboneConfig, RelPosConfig, WindowConfig, WindowPadding};
pub use data::{
    CifarConfig, CifarSplit, CifarVariant, ClassNames, CocoConfig, DataConfig, ImageFolderConfig,
    ImageListConfig, MaskFolderConfig, MixConfig, OnError, SamplingConfig, SplitConfig,
    VideoListConfig, ViewsConfig, VtabConfig, VtabList,
};
pub use dispatch::{
    DispatchConfig, Inference, NoiseConfig, RateSchedule, Select, TauSchedule, TomeConfig, Variant,
};
pub use train::{
    AdamWConfig, CosineConfig, EvalConfig, EvalMode, GroupConfig, LossConfig, OptimizerConfig,
    PolyConfig, Precision, ScheduleConfig, SgdConfig, TrainConfig,
};
pub use transforms::{Fill, TransformConfig};
pub use tuning::{
    AdapterConfig, BackboneTuning, Ia3Config, LoraConfig, LoraTarget, MemoryConfig, Placement,
    RlrrConfig, RlrrInit, SsfConfig, StAdapterConfig, TuningConfig, VptConfig,
};
pub use vtab::{VtabGroup, VtabTask};

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
    /// The run (a folder, or an exported file) whose tasks are kept while this one is added to them (arXiv 2203.15243 §3):
    /// `backbone`, `dispatch` and `tuning` but for `memory` must be that run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<PathBuf>,
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

impl<H> Config<H> {
    /// Replaces lengths in epochs by iterations for a training set of `samples` that `processes` share: afterwards
    /// `train.iterations` is given.
    pub fn resolve_epochs(&mut self, samples: usize, processes: usize) {
        let per_step = (self.train.batch_size * self.train.accumulate * processes) as f64;
        let steps = |epochs: f64| (epochs * samples as f64 / per_step).round() as u64;
        if let Some(epochs) = self.train.epochs.take() {
            self.train.iterations = Some(steps(epochs).max(1));
        }
        let (warmup_epochs, warmup_iters) = match &mut self.schedule {
            ScheduleConfig::Poly(c) => (&mut c.warmup_epochs, &mut c.warmup_iters),
            ScheduleConfig::Cosine(c) => (&mut c.warmup_epochs, &mut c.warmup_iters),
        };
        if let Some(epochs) = warmup_epochs.take() {
            *warmup_iters = steps(epochs);
        }
    }
}

fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn auto() -> String {
    "auto".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_fewer_steps_on_more_processes() {
        let split = "{ ade20k: { images: a, labels: b, classes: [x] } }";
        let text = format!(
            "task: segmentation\nbackbone: {{ arch: vit_s, patch_size: 16, pos_embed_grid: [14, 14] }}\nhead: 1\n\
             data: {{ train: {split}, val: {split} }}\nschedule: {{ poly: {{ warmup_epochs: 1 }} }}\n\
             train: {{ epochs: 3, batch_size: 2, accumulate: 5 }}"
        );
        let lengths = |processes: usize| {
            let mut config: Config<u8> = load::parse(&text, "a.yaml".as_ref(), &[]).unwrap();
            config.resolve_epochs(120, processes);
            let ScheduleConfig::Poly(schedule) = config.schedule else { unreachable!() };
            (config.train.iterations, schedule.warmup_iters)
        };
        // 120 samples are 12 steps of 2 · 5 on one process and 3 on four.
        assert_eq!((lengths(1), lengths(4)), ((Some(36), 12), (Some(9), 3)));
    }
}
