//! The YAML schema of a run. Every struct refuses unknown keys; defaults are those of the papers or of no effect.
//!
//! `Config<H>` is generic over the head's section, because the core never names a head: `rescatter-heads` supplies the
//! enum. Reading, overrides and error messages are in [`load`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod load;
mod overrides;
pub(crate) mod validate;

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

/// A timm-style vision transformer; explicit sizes override those of `arch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// A named size.
    pub arch: Option<Arch>,
    /// Width of a token.
    pub embed_dim: Option<usize>,
    /// Number of blocks.
    pub depth: Option<usize>,
    /// Attention heads.
    pub num_heads: Option<usize>,
    /// Hidden width of the MLP over `embed_dim`.
    pub mlp_ratio: Option<f64>,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Whether blocks scale their branches (DINOv2, CaiT).
    #[serde(default)]
    pub layer_scale: bool,
    /// Whether there is a class token. ViTDet drops that of its pretrained weights, and windows need it dropped.
    #[serde(default = "yes")]
    pub cls_token: bool,
    /// Register tokens after the class token.
    #[serde(default)]
    pub reg_tokens: usize,
    /// Whether only patches get a position embedding.
    #[serde(default)]
    pub no_embed_class: bool,
    /// Rows and columns of the stored position embedding.
    pub pos_embed_grid: [usize; 2],
    /// Attention in windows with global blocks in between; `null` lets every block see the whole image.
    #[serde(default)]
    pub window: Option<WindowConfig>,
    /// Decomposed relative positions in every block; `null` has none.
    #[serde(default)]
    pub rel_pos: Option<RelPosConfig>,
    /// The pretrained checkpoint; without one the backbone starts at random.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// Stochastic depth: the last block's rate, rising linearly from 0.
    #[serde(default)]
    pub drop_path: f64,
}

/// Windowed attention (ViTDet, Li et al., arXiv 2203.16527, §3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Side of a window in patches.
    pub size: usize,
    /// The blocks (from 0, rising) that see the whole image.
    pub global_blocks: Vec<usize>,
    /// What fills windows at the right and lower edge.
    #[serde(default)]
    pub padding: WindowPadding,
}

/// What fills windows that reach over the right or lower edge of the token grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowPadding {
    /// Zeros in each windowed block, after its norm (ViTDet's way).
    #[default]
    Tokens,
    /// Patches of zeros: images are padded to a multiple of patch × window, and maps are cropped back.
    Images,
}

/// Decomposed relative positions (MViTv2, arXiv 2112.01526, Eq. 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelPosConfig {
    /// Rows and columns of patches that the tables of global blocks are for, in ViTDet those of the training image: [64, 64].
    /// Images of other grids interpolate them; windows have tables of their own size.
    pub grid: [usize; 2],
}

/// Named sizes (Dosovitskiy et al., arXiv 2010.11929, Table 1; Ti and S from DeiT, arXiv 2012.12877).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 192 × 12, 3 heads.
    VitTi,
    /// 384 × 12, 6 heads.
    VitS,
    /// 768 × 12, 12 heads.
    VitB,
    /// 1024 × 24, 16 heads.
    VitL,
    /// 1280 × 32, 16 heads.
    VitH,
}

impl Arch {
    /// Width of a token.
    pub fn embed_dim(self) -> usize {
        self.sizes().0
    }

    /// Number of blocks.
    pub fn depth(self) -> usize {
        self.sizes().1
    }

    /// Attention heads.
    pub fn num_heads(self) -> usize {
        self.sizes().2
    }

    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::VitTi => (192, 12, 3),
            Self::VitS => (384, 12, 6),
            Self::VitB => (768, 12, 12),
            Self::VitL => (1024, 24, 16),
            Self::VitH => (1280, 32, 16),
        }
    }
}

/// Token dispatch (\[DyT\] §3.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DispatchConfig {
    /// What inactive tokens skip.
    pub variant: Variant,
    /// r, the share of tokens that should be active.
    pub target_rate: f64,
    /// How r falls to `target_rate` during training; `null` holds it from the start, as published.
    pub rate_schedule: Option<RateSchedule>,
    /// τ of the Gumbel-sigmoid.
    pub tau: f64,
    /// Which tokens are active without noise.
    pub inference: Inference,
    /// How the noise fades during training; `null` keeps it, as published.
    pub noise: Option<NoiseConfig>,
    /// Who decides: the learned dispatcher or chance (the ablation of \[DyT\] Table 7).
    pub select: Select,
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            variant: Variant::None,
            target_rate: 0.5,
            rate_schedule: None,
            tau: 5.0,
            inference: Inference::Threshold,
            noise: None,
            select: Select::Learned,
        }
    }
}

impl DispatchConfig {
    /// The share of tokens that untrained dispatchers keep.
    pub fn initial_rate(&self) -> f64 {
        self.rate_schedule.map_or(0.5, |schedule| schedule.from)
    }

    /// r after the share `progress` of the training.
    pub fn rate_at(&self, progress: f64) -> f64 {
        match self.rate_schedule {
            Some(RateSchedule { from, until }) if progress < until => {
                from + (self.target_rate - from) * progress / until
            }
            _ => self.target_rate,
        }
    }
}

/// A budget that tightens, so that the model learns its task before it learns what it can do without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSchedule {
    /// r at the start, in (0, 1); the dispatchers' biases start at logit(r), so that chance alone meets it.
    pub from: f64,
    /// Share of the training after which `target_rate` is reached (linear from `from`).
    pub until: f64,
}

/// What inactive tokens skip (\[DyT\] Fig. 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing: the dense model.
    None,
    /// The MLP (the published default).
    Mlp,
}

/// Which tokens are active at inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inference {
    /// σ(logit) > 0.5, as published.
    Threshold,
    /// The share q of each image's tokens with the highest logits, layer by layer; ties to the lowest index.
    TopK(f64),
    /// Thresholds stored by calibration, so that the share q of all tokens is active.
    Calibrated(f64),
}

/// Noise that fades before the end of training closes the gap between training and inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseConfig {
    /// Factor on the noise that is reached in the end.
    pub anneal_to: f64,
    /// Share of the training after which it is reached (linear from 1).
    pub until: f64,
}

/// Who decides which tokens are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The trained dispatcher.
    Learned,
    /// A coin with probability r per token and layer.
    Random,
}

/// What is trained besides the head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuningConfig {
    /// Whether the pretrained weights themselves are trained.
    pub backbone: BackboneTuning,
    /// AdaptFormer-style bottleneck beside the MLP (\[DyT\] Eq. 1).
    pub adapter: Option<AdapterConfig>,
}

/// Whether the pretrained weights are trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneTuning {
    /// They stay as they are.
    #[default]
    Frozen,
    /// All of them are trained.
    Full,
}

/// A(x) = scale · Up(ReLU(Down(x))).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Hidden width.
    pub bottleneck: usize,
    /// s.
    #[serde(default = "default_adapter_scale")]
    pub scale: f64,
    /// Dropout between ReLU and the up-projection.
    #[serde(default)]
    pub dropout: f64,
    /// Experts merged per image (\[DyT\] Eq. 7); 1 is the plain adapter.
    #[serde(default = "one")]
    pub experts: usize,
}

/// Both splits and the loader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What is trained on.
    pub train: SplitConfig,
    /// What is evaluated on.
    pub val: SplitConfig,
    /// Threads that read and transform; 0 reads in the training thread.
    #[serde(default = "default_workers")]
    pub workers: usize,
}

/// One split: exactly one reader (or `concat`), and its transforms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitConfig {
    /// ADE20K's layout, or any pair of folders with images and PNG labels of equal names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ade20k: Option<MaskFolderConfig>,
    /// COCO-Stuff 164k: labels `*_labelTrainIds.png` or raw category ids through `label_map`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coco_stuff: Option<MaskFolderConfig>,
    /// Image classification: one folder per class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_folder: Option<ImageFolderConfig>,
    /// Detection: COCO's `instances_*.json` beside a folder of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coco: Option<CocoConfig>,
    /// Several sets, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concat: Option<Vec<SplitConfig>>,
    /// How often the set is repeated in an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<usize>,
    /// Applied in order; the first that needs randomness draws from the sample's own stream.
    pub transforms: Vec<TransformConfig>,
}

/// Images beside PNG label maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskFolderConfig {
    /// Folder of images (searched through its subfolders).
    pub images: PathBuf,
    /// Folder of label PNGs with the same relative names.
    pub labels: PathBuf,
    /// What replaces the image's extension in the label's name, e.g. `.png` or `_labelTrainIds.png`.
    #[serde(default = "default_label_suffix")]
    pub label_suffix: String,
    /// Names in the order of the label values, or a text file with one name per line.
    pub classes: ClassNames,
    /// Replaces raw label values before anything else, e.g. `{11: 255}`.
    #[serde(default)]
    pub label_map: std::collections::BTreeMap<u32, u32>,
    /// Whether 0 means "unlabelled": 0 → ignore, others minus one.
    #[serde(default)]
    pub reduce_zero_label: bool,
    /// The label that counts nowhere.
    #[serde(default = "default_ignore_index")]
    pub ignore_index: u32,
    /// A broken sample ends the run, or is skipped, counted and reported.
    #[serde(default)]
    pub on_error: OnError,
}

/// Image classification from folders: one per class, the name is the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFolderConfig {
    /// The folder of class folders.
    pub root: PathBuf,
    /// Names and order of the classes; by default the folders' names, sorted.
    #[serde(default)]
    pub classes: Option<ClassNames>,
    /// A broken sample ends the run, or is skipped, counted and reported.
    #[serde(default)]
    pub on_error: OnError,
}

/// Images with COCO's annotations; the classes are the file's categories in the order of their ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CocoConfig {
    /// The folder that `file_name` starts in.
    pub images: PathBuf,
    /// `instances_*.json`.
    pub annotations: PathBuf,
    /// Takes only the images with the lowest ids, as many as this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<usize>,
    /// Whether images without an object are left out (crowds do not count); in training only.
    #[serde(default)]
    pub filter_empty: bool,
    /// A broken sample ends the run, or is skipped, counted and reported.
    #[serde(default)]
    pub on_error: OnError,
}

/// What happens at a broken sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The run ends with the file's name.
    #[default]
    Stop,
    /// The next sample takes its place; the epoch's report counts it.
    Skip,
}

/// Class names: a list, or a file with one per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassNames {
    /// In the order of the label values.
    List(Vec<String>),
    /// One per line.
    File(PathBuf),
}

/// One step of the input pipeline (mmsegmentation's names and semantics, in snake case).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TransformConfig {
    /// Resize to a scale drawn from a range, or to a fixed one, keeping the ratio or not.
    Resize {
        /// Height and width at factor 1; `null` means the image's own size.
        #[serde(default)]
        size: Option<[usize; 2]>,
        /// Range of the random factor.
        #[serde(default = "unit_range")]
        ratio_range: [f64; 2],
        /// Whether the aspect ratio stays (the image then fits into `size`).
        #[serde(default = "yes")]
        keep_ratio: bool,
        /// The shorter side is at least this.
        #[serde(default)]
        min_side: Option<usize>,
        /// Round both sides to the nearest multiple of this.
        #[serde(default)]
        multiple_of: Option<usize>,
    },
    /// Resize so that the shorter side is one of `sizes`, drawn at random, and the longer one at most `max_size`
    /// (detectron2's `ResizeShortestEdge`).
    ///
    /// Large-scale jitter (Ghiasi et al., arXiv 2012.07177) is `resize: { size: [1024, 1024], ratio_range: [0.1, 2.0] }`, then
    /// `random_crop` to 1024 × 1024, and `pad` to the same after `normalize`.
    ResizeShortestEdge {
        /// Lengths of the shorter side; evaluation takes one.
        sizes: Vec<usize>,
        /// Largest longer side.
        max_size: usize,
    },
    /// Random crop; redrawn up to ten times while one class covers more than `cat_max_ratio` of the labelled pixels.
    RandomCrop {
        /// Height and width.
        size: [usize; 2],
        /// 1 accepts every crop.
        #[serde(default = "unit")]
        cat_max_ratio: f64,
    },
    /// Crop of a random area and ratio, resized (Inception; classification and video).
    RandomResizedCrop {
        /// Height and width of the result.
        size: [usize; 2],
        /// Range of the area's share.
        #[serde(default = "default_area_range")]
        scale: [f64; 2],
    },
    /// The middle.
    CenterCrop {
        /// Height and width.
        size: [usize; 2],
    },
    /// Mirror left and right.
    RandomFlip {
        /// Probability.
        #[serde(default = "half")]
        prob: f64,
    },
    /// Brightness, contrast, saturation and hue as in SSD and mmsegmentation.
    PhotometricDistortion {
        /// Largest shift of the brightness.
        #[serde(default = "default_brightness")]
        brightness: f64,
        /// Range of the contrast factor.
        #[serde(default = "default_distortion_range")]
        contrast: [f64; 2],
        /// Range of the saturation factor.
        #[serde(default = "default_distortion_range")]
        saturation: [f64; 2],
        /// Largest shift of the hue (of 180).
        #[serde(default = "default_hue")]
        hue: f64,
    },
    /// (x / 255 − mean) / std per channel; once, last before `pad`.
    Normalize {
        /// RGB.
        #[serde(default = "imagenet_mean")]
        mean: [f32; 3],
        /// RGB.
        #[serde(default = "imagenet_std")]
        std: [f32; 3],
    },
    /// Pad right and bottom: the image with zeros (after normalising), the label with the ignore index.
    Pad {
        /// Height and width that are reached at least.
        size: [usize; 2],
    },
}

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
    /// First factor.
    pub warmup_ratio: f64,
    /// Never below this.
    pub min_lr: f64,
}

impl Default for PolyConfig {
    fn default() -> Self {
        Self { power: 1.0, warmup_iters: 0, warmup_ratio: 1e-6, min_lr: 0.0 }
    }
}

/// Cosine with linear warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineConfig {
    /// Iterations of warm-up.
    pub warmup_iters: u64,
    /// The first learning rate.
    pub warmup_lr: f64,
    /// The last one.
    pub min_lr: f64,
}

/// Length and rhythm of the training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub iterations: u64,
    /// Images per micro-batch and process.
    pub batch_size: usize,
    /// Micro-batches per step.
    #[serde(default = "one")]
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
    /// Element type of the arithmetic.
    #[serde(default)]
    pub precision: Precision,
}

/// Element type of the arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits throughout.
    #[default]
    F32,
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

fn auto() -> String {
    "auto".into()
}
fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn unit() -> f64 {
    1.0
}
fn half() -> f64 {
    0.5
}
fn unit_range() -> [f64; 2] {
    [1.0, 1.0]
}
fn default_area_range() -> [f64; 2] {
    [0.08, 1.0]
}
fn default_adapter_scale() -> f64 {
    0.1
}
fn default_workers() -> usize {
    2
}
fn default_label_suffix() -> String {
    ".png".into()
}
fn default_ignore_index() -> u32 {
    255
}
fn default_brightness() -> f64 {
    32.0
}
fn default_distortion_range() -> [f64; 2] {
    [0.5, 1.5]
}
fn default_hue() -> f64 {
    18.0
}
fn default_checkpoint_every() -> u64 {
    1000
}
fn default_log_every() -> u64 {
    50
}
fn imagenet_mean() -> [f32; 3] {
    [0.485, 0.456, 0.406]
}
fn imagenet_std() -> [f32; 3] {
    [0.229, 0.224, 0.225]
}
