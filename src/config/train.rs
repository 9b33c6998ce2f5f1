//! Losses, optimizer, schedule, and the rhythm of training and evaluation.

use serde::{Deserialize, Serialize};

/// Weights of the losses beside the task's own (\[DyT\] Eq. 8–10).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// α of (mean mask − r)².
    pub rate: f64,
    /// The task's loss of the complete model, in which every token is active.
    pub complete: f64,
    /// KL(complete ‖ dynamic).
    pub distill: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { rate: 2.0, complete: 0.0, distill: 0.0 }
    }
}

/// How parameters move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101).
    Adamw(AdamWConfig),
    /// Momentum SGD as in torch.
    Sgd(SgdConfig),
}

impl OptimizerConfig {
    /// The learning rate that the schedule starts from.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Adamw(adamw) => adamw.lr,
            Self::Sgd(sgd) => sgd.lr,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw(AdamWConfig::default())
    }
}

/// AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled decay; norms, biases and other vectors get none.
    pub weight_decay: f64,
    /// β₁, β₂.
    pub betas: [f64; 2],
    /// ε.
    pub eps: f64,
    /// Which parameters differ.
    pub groups: GroupConfig,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            weight_decay: 0.05,
            betas: [0.9, 0.999],
            eps: 1e-8,
            groups: GroupConfig::default(),
        }
    }
}

/// Momentum SGD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Factor of the buffer.
    pub momentum: f64,
    /// Added to the gradient; norms, biases and other vectors get none.
    pub weight_decay: f64,
    /// Which parameters differ.
    pub groups: GroupConfig,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 0.01, momentum: 0.9, weight_decay: 5e-4, groups: GroupConfig::default() }
    }
}

/// Factors on the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// Of everything outside `backbone.`.
    pub head_lr_multiplier: f64,
    /// Per block, counted from the last (BEiT, arXiv 2106.08254): lr · decay^(depth − i).
    pub layer_decay: f64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self { head_lr_multiplier: 1.0, layer_decay: 1.0 }
    }
}

/// How the learning rate changes; formulas in `engine::schedule`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleConfig {
    /// mmsegmentation's poly policy.
    Poly(PolyConfig),
    /// Half a cosine.
    Cosine(CosineConfig),
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self::Poly(PolyConfig::default())
    }
}

/// Poly with linear warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolyConfig {
    /// Exponent.
    pub power: f64,
    /// Iterations of warm-up.
    pub warmup_iters: u64,
    /// Passes over the training set of warm-up, in the place of `warmup_iters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// First factor.
    pub warmup_ratio: f64,
    /// Never below this.
    pub min_lr: f64,
}

impl Default for PolyConfig {
    fn default() -> Self {
        Self { power: 1.0, warmup_iters: 0, warmup_epochs: None, warmup_ratio: 1e-6, min_lr: 0.0 }
    }
}

/// Cosine with linear warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineConfig {
    /// Iterations of warm-up.
    pub warmup_iters: u64,
    /// Passes over the training set of warm-up, in the place of `warmup_iters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// The first learning rate.
    pub warmup_lr: f64,
    /// The last one.
    pub min_lr: f64,
}

/// Length and rhythm of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps; either these or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iterations: Option<u64>,
    /// Passes over the training set, from which the steps are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Images per micro-batch and process.
    pub batch_size: usize,
    /// Micro-batches per step.
    #[serde(default = "super::one")]
    pub accumulate: usize,
    /// Largest global gradient norm; `null` does not clip.
    #[serde(default)]
    pub clip_norm: Option<f64>,
    /// Decay of an exponential moving average of the weights, which is then what is evaluated.
    #[serde(default)]
    pub ema: Option<f64>,
    /// Steps between evaluations (the last step always evaluates).
    #[serde(default)]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Steps between lines of the log.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
    /// Most blocks of the backbone that keep nothing for the backward pass but what leaves the last of them: they run once
    /// more in it. Costs up to one more forward pass of the backbone and saves memory; `null` keeps everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_blocks: Option<usize>,
    /// Element type of the arithmetic.
    #[serde(default)]
    pub precision: Precision,
    /// Classification with a frozen backbone and images that are always the same: the backbone sees each image once, and
    /// the head is trained on what it gave.
    #[serde(default)]
    pub cache_features: bool,
}

/// Element type of the arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits throughout.
    #[default]
    F32,
    /// On a GPU: the factors of products in bfloat16, everything else in 32 bits.
    Bf16,
    /// On a GPU: the same in 16 bits of IEEE 754, which are more exact and reach less far; the loss is scaled for the backward
    /// pass (`engine::LossScale`).
    F16,
}

impl Precision {
    /// As configs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// How predictions are made for evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Whole image or sliding window.
    pub mode: EvalMode,
    /// Scales whose class probabilities are averaged.
    pub scales: Vec<f64>,
    /// Whether the mirrored image is averaged in.
    pub flip: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { mode: EvalMode::Whole, scales: vec![1.0], flip: false }
    }
}

/// Whole image or sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EvalMode {
    /// One pass over the image.
    Whole,
    /// Overlapping windows whose logits are averaged (mmsegmentation's `slide`).
    Slide {
        /// Side of the window.
        crop: usize,
        /// Step of the window.
        stride: usize,
    },
}

fn default_checkpoint_every() -> u64 {
    1000
}
fn default_log_every() -> u64 {
    50
}
