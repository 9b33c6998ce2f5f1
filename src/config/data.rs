//! Where samples come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{TransformConfig, VtabTask};
use crate::{Error, Result};

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
    /// Classification: whether the images of a training batch are mixed in pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<MixConfig>,
}

/// Mixup (Zhang et al., arXiv 1710.09412) and cutmix (Yun et al., arXiv 1905.04899): one draw per batch, in which every image
/// is mixed with the one as far from the batch's end (timm's `Mixup` in batch mode).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixConfig {
    /// α of mixup's share, drawn from Beta(α, α); 0 never blends.
    pub mixup: f64,
    /// α of cutmix's share, drawn from Beta(α, α); 0 never pastes.
    pub cutmix: f64,
    /// Probability that a batch is mixed.
    pub prob: f64,
    /// Probability of cutmix where both are wanted.
    pub switch_prob: f64,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self { mixup: 0.0, cutmix: 0.0, prob: 1.0, switch_prob: 0.5 }
    }
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
    /// Image classification: the binary files of CIFAR-10 and CIFAR-100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cifar: Option<CifarConfig>,
    /// Image classification: a text file with an image and its class's number on each line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_list: Option<ImageListConfig>,
    /// Image classification: a task of VTAB-1K in the layout of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vtab: Option<VtabConfig>,
    /// Detection: COCO's `instances_*.json` beside a folder of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coco: Option<CocoConfig>,
    /// Video classification: a list of clips with their classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video_list: Option<VideoListConfig>,
    /// Several sets, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concat: Option<Vec<SplitConfig>>,
    /// How often the set is repeated in an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<usize>,
    /// Applied in order; the first that needs randomness draws from the sample's own stream.
    pub transforms: Vec<TransformConfig>,
}

impl DataConfig {
    /// What all validation images go through.
    ///
    /// # Errors
    /// If two parts of the set have different transforms.
    pub fn val_transforms(&self) -> Result<&[TransformConfig]> {
        self.val.common_transforms("data.val")
    }
}

impl SplitConfig {
    /// The first list of clips among its sets, if it is of videos.
    pub fn clips(&self) -> Option<&VideoListConfig> {
        let of_parts = || self.concat.iter().flatten().find_map(Self::clips);
        self.video_list.as_ref().or_else(of_parts)
    }

    /// Frames per sample: 1 for images.
    pub fn frames(&self) -> usize {
        self.clips().map_or(1, |list| list.frames)
    }

    /// What all samples of the split go through: its own transforms, or else those of its parts. `key` is the split's, for
    /// messages.
    ///
    /// # Errors
    /// If two parts have different transforms.
    fn common_transforms(&self, key: &str) -> Result<&[TransformConfig]> {
        let parts = self.concat.as_deref().unwrap_or_default();
        if parts.is_empty() || !self.transforms.is_empty() {
            return Ok(&self.transforms);
        }
        let of_part = |i: usize| parts[i].common_transforms(&format!("{key}.concat.{i}"));
        let first = of_part(0)?;
        for i in 1..parts.len() {
            if of_part(i)? != first {
                let what = format!("`{key}.concat.{i}.transforms` differ from those of part 0");
                let cure = format!("give the transforms of all parts once, as `{key}.transforms`");
                return Err(Error::usage(what).with_hint(cure));
            }
        }
        Ok(first)
    }
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

/// CIFAR's binary version (Krizhevsky 2009): `cifar-10-batches-bin` or `cifar-100-binary` as unpacked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CifarConfig {
    /// The folder of the `.bin` files and the lists of class names.
    pub root: PathBuf,
    /// Which set, and which of its labels.
    pub variant: CifarVariant,
    /// Which of its halves.
    pub split: CifarSplit,
}

/// A set of CIFAR with its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CifarVariant {
    /// Ten classes.
    Cifar10,
    /// A hundred classes: the fine labels.
    Cifar100,
    /// The same images with the twenty coarse labels.
    Cifar100Coarse,
}

/// A half of CIFAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CifarSplit {
    /// 50,000 images.
    Train,
    /// 10,000 images.
    Test,
}

/// Images named in a text file: `path label` on each line, the label a number from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageListConfig {
    /// The folder that the paths start in.
    pub root: PathBuf,
    /// The text file.
    pub list: PathBuf,
    /// Names of the classes, or how many there are.
    pub classes: ClassNames,
    /// A broken sample ends the run, or is skipped, counted and reported.
    #[serde(default)]
    pub on_error: OnError,
}

/// A task of VTAB-1K (Zhai et al., arXiv 1910.04867): `ROOT/TASK/train800.txt` and the like, whose paths start in `ROOT/TASK`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VtabConfig {
    /// The folder of the tasks' folders.
    pub root: PathBuf,
    /// Which task.
    pub task: VtabTask,
    /// Which list.
    pub list: VtabList,
}

/// The lists of a VTAB-1K task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VtabList {
    /// 800 images to train on while values are searched for.
    Train800,
    /// 200 images to choose the values by.
    Val200,
    /// All 1,000 of them, for the final training.
    Train800val200,
    /// The test images.
    Test,
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

/// Clips by a list: lines `path label` (K400), `path,label`, or Something-Something's JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoListConfig {
    /// The folder that the list's paths start in.
    pub root: PathBuf,
    /// The list. A path is a video file, or a folder whose images are the frames in the order of their names.
    pub file: PathBuf,
    /// Names in the order of the labels, a file with one per line, how many there are, or Something-Something's
    /// `labels.json`.
    pub classes: ClassNames,
    /// Which frames make a clip.
    pub sampling: SamplingConfig,
    /// T, frames per clip.
    #[serde(default = "eight")]
    pub frames: usize,
    /// Length to which decoding reduces the shorter side; smaller videos stay as they are. `null` decodes at full size.
    #[serde(default)]
    pub short_side: Option<usize>,
    /// Clips and crops per video at evaluation.
    #[serde(default)]
    pub views: ViewsConfig,
    /// What JSON lists leave out of the names: `{id}.{extension}`.
    #[serde(default = "webm")]
    pub extension: String,
    /// A broken sample ends the run, or is skipped, counted and reported.
    #[serde(default)]
    pub on_error: OnError,
}

/// Which frames make a clip. Places are those of a video with a constant frame rate; where the rate varies, the frame that
/// was shown at that time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SamplingConfig {
    /// Every `rate`-th frame (K400): from a random start in training, evenly spread clips at evaluation. A video that is too
    /// short is sampled evenly from its first to its last frame.
    Dense {
        /// Frames from one to the next.
        rate: usize,
    },
    /// One frame of each of T equal segments of the whole video (Something-Something): a random one in training, the middle
    /// one at evaluation.
    Uniform {},
}

/// Views of a video whose class logits are averaged at evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ViewsConfig {
    /// Clips, evenly spread over the video.
    pub clips: usize,
    /// Places of `center_crop`, evenly spread along the longer side.
    pub crops: usize,
}

impl Default for ViewsConfig {
    fn default() -> Self {
        Self { clips: 1, crops: 1 }
    }
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

/// Class names: a list, a file with one per line, or only how many there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassNames {
    /// In the order of the label values.
    List(Vec<String>),
    /// They are called by their numbers.
    Count(usize),
    /// One per line.
    File(PathBuf),
}

fn eight() -> usize {
    8
}
fn webm() -> String {
    "webm".into()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn part(transforms: &[TransformConfig]) -> SplitConfig {
        SplitConfig { transforms: transforms.to_vec(), ..SplitConfig::default() }
    }

    #[test]
    fn parts_have_common_transforms_or_are_named() {
        let crop = TransformConfig::CenterCrop { size: [4, 4] };
        let pad = TransformConfig::Pad { size: [8, 8] };
        let both = |parts: [&[TransformConfig]; 2]| SplitConfig {
            concat: Some(parts.map(part).to_vec()),
            ..SplitConfig::default()
        };
        let crops = std::slice::from_ref(&crop);
        assert_eq!(part(crops).common_transforms("data.val").unwrap(), crops);
        assert_eq!(both([crops, crops]).common_transforms("data.val").unwrap(), crops);
        let outer = SplitConfig { transforms: vec![pad.clone()], ..both([&[], &[]]) };
        assert_eq!(outer.common_transforms("data.val").unwrap(), std::slice::from_ref(&pad));
        let error = both([crops, &[pad]]).common_transforms("data.val").unwrap_err();
        assert!(error.to_string().starts_with("`data.val.concat.1.transforms` differ"), "{error}");
    }
}
