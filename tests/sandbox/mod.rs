//! A folder with tiny images, labels and configs, and the binary that runs in it.

// Every test file compiles this module and uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{GrayImage, Luma, Rgb, RgbImage};
use tempfile::TempDir;

/// A temporary folder that commands run in.
pub(crate) struct Sandbox {
    folder: TempDir,
}

/// Image `n`: a bright square on noise, whose place and colour depend on `n`.
fn picture(n: u32) -> (RgbImage, GrayImage) {
    let inside = |x: u32, y: u32| (x + y / 2 + 5 * n) % 32 < 14;
    let image = RgbImage::from_fn(32, 32, |x, y| {
        let noise = (x * 37 + y * 101 + n * 53) % 61;
        let value = (if inside(x, y) { 170 } else { 40 } + noise) as u8;
        Rgb([value, (n * 40 % 200) as u8, 255 - value])
    });
    let label = GrayImage::from_fn(32, 32, |x, y| Luma([u8::from(inside(x, y))]));
    (image, label)
}

impl Sandbox {
    /// Eight training and two validation images with labels 0 and 1 below `data`, the same by class below `classes`, and
    /// the configs `segment.yaml` and `classify.yaml`.
    pub(crate) fn new() -> Self {
        let sandbox = Self { folder: tempfile::tempdir().unwrap() };
        for (split, range) in [("train", 0..8), ("val", 8..10)] {
            for n in range {
                let (image, label) = picture(n);
                for (folder, name) in [
                    (format!("data/images/{split}"), format!("{n}.jpg")),
                    (
                        format!("classes/{split}/{}", ["even", "odd"][n as usize % 2]),
                        format!("{n}.png"),
                    ),
                ] {
                    std::fs::create_dir_all(sandbox.path(&folder)).unwrap();
                    image.save(sandbox.path(&folder).join(name)).unwrap();
                }
                std::fs::create_dir_all(sandbox.path(&format!("data/labels/{split}"))).unwrap();
                label.save(sandbox.path(&format!("data/labels/{split}/{n}.png"))).unwrap();
            }
        }
        std::fs::write(sandbox.path("segment.yaml"), SEGMENT).unwrap();
        std::fs::write(sandbox.path("classify.yaml"), CLASSIFY).unwrap();
        sandbox
    }

    /// The same with images of objects in `set` and the config `detect.yaml`.
    pub(crate) fn with_objects() -> Self {
        let sandbox = Self::new();
        sandbox.succeeds("data make coco --output set --count 15");
        std::fs::write(sandbox.path("detect.yaml"), DETECT).unwrap();
        sandbox
    }

    /// The same with clips in `moving` and the config `clips.yaml`.
    pub(crate) fn with_clips() -> Self {
        let sandbox = Self::new();
        sandbox.succeeds("data make video --output moving --count 20");
        std::fs::write(sandbox.path("clips.yaml"), CLIPS).unwrap();
        sandbox
    }

    /// A place in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `rescatter ARGS` in the folder, on two threads; only warnings are logged.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rescatter"));
        command.args(args.split_whitespace()).current_dir(self.folder.path());
        command.env("RAYON_NUM_THREADS", "2").env("RESCATTER_LOG", "warn");
        command
    }

    /// Runs `rescatter ARGS`, which must succeed.
    pub(crate) fn succeeds(&self, args: &str) -> Output {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs `rescatter ARGS`, which must fail with exit code 1 and one error; returns what it says.
    pub(crate) fn fails(&self, args: &str) -> String {
        failure(&self.command(args).output().unwrap())
    }

    /// All tensors of a checkpoint in the folder: their bytes by name.
    pub(crate) fn tensors(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
    }

    /// The names of the files in a subfolder, hidden ones too.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a failed command says: exit code 1, nothing on stdout, exactly one error on stderr.
pub(crate) fn failure(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let errors = text.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

const SEGMENT: &str = "\
task: segmentation
backbone: { embed_dim: 16, depth: 2, num_heads: 2, mlp_ratio: 2.0, patch_size: 8, pos_embed_grid: [4, 4] }
dispatch: { variant: mlp, inference: { calibrated: 0.5 } }
tuning: { adapter: { bottleneck: 4, dropout: 0.1 } }
head: { linear: { dropout: 0.1 } }
data:
  train:
    ade20k: { images: data/images/train, labels: data/labels/train, classes: [ground, square] }
    transforms:
      - resize: { ratio_range: [0.8, 1.5], min_side: 24 }
      - random_crop: { size: [24, 24], cat_max_ratio: 0.9 }
      - random_flip: {}
      - photometric_distortion: {}
      - normalize: {}
  val:
    ade20k: { images: data/images/val, labels: data/labels/val, classes: [ground, square] }
    transforms: [{ normalize: {} }]
optimizer: { adamw: { lr: 5e-3 } }
train: { iterations: 30, batch_size: 3, clip_norm: 1.0, ema: 0.8, eval_every: 10, checkpoint_every: 3, log_every: 1 }
";

const CLASSIFY: &str = "\
task: classification
backbone: { embed_dim: 16, depth: 2, num_heads: 2, mlp_ratio: 2.0, patch_size: 8, pos_embed_grid: [4, 4] }
dispatch: { variant: mlp }
tuning: { adapter: { bottleneck: 4, dropout: 0.1 } }
head: { classifier: { pool: mean } }
data:
  train: { image_folder: { root: classes/train }, transforms: [{ random_flip: {} }, { normalize: {} }] }
  val: { image_folder: { root: classes/val }, transforms: [{ normalize: {} }] }
optimizer: { adamw: { lr: 1e-3 } }
train: { iterations: 3, batch_size: 4, clip_norm: 1.0 }
";

const DETECT: &str = "\
task: detection
backbone: { embed_dim: 16, depth: 2, num_heads: 2, mlp_ratio: 2.0, patch_size: 8, pos_embed_grid: [8, 8] }
dispatch: { variant: mlp, inference: { calibrated: 0.5 } }
tuning: { adapter: { bottleneck: 4 } }
head:
  mask_rcnn:
    channels: 8
    anchors: { sizes: [8, 16, 32, 64, 96] }
    rpn: { pre_nms: { train: 60, test: 60 }, post_nms: { train: 30, test: 30 } }
    roi: { sampled: 16, canonical_size: 48.0 }
    box_head: { convs: 1, conv_dim: 8, fc_dim: 16 }
    mask_head: { convs: 1, dim: 8, max_sampled: 4 }
    detections: { per_image: 8 }
data:
  train:
    coco: { images: set/train2017, annotations: set/annotations/instances_train2017.json, filter_empty: true }
    transforms: [{ resize_shortest_edge: { sizes: [56, 72], max_size: 96 } }, { random_flip: {} }, { normalize: {} }]
  val:
    coco: { images: set/val2017, annotations: set/annotations/instances_val2017.json }
    transforms: [{ resize_shortest_edge: { sizes: [64], max_size: 96 } }, { normalize: {} }]
optimizer: { adamw: { lr: 1e-3 } }
train: { iterations: 3, batch_size: 2, accumulate: 2, clip_norm: 1.0, log_every: 1 }
";

const CLIPS: &str = "\
task: video
backbone: { embed_dim: 16, depth: 2, num_heads: 2, mlp_ratio: 2.0, patch_size: 8, pos_embed_grid: [4, 4] }
dispatch: { variant: mlp, inference: { calibrated: 0.5 } }
tuning: { adapter: { bottleneck: 4, dropout: 0.1 }, st_adapter: { bottleneck: 4 } }
head: { temporal_transformer: { frames: 4, dim: 16, num_heads: 2, dropout: 0.1 } }
data:
  train:
    video_list: { root: moving, file: moving/train.txt, classes: moving/classes.txt, frames: 4, sampling: { uniform: {} } }
    transforms: [{ random_resized_crop: { size: [32, 32], scale: [0.5, 1.0] } }, { normalize: {} }]
  val:
    video_list: { root: moving, file: moving/val.txt, classes: moving/classes.txt, frames: 4, sampling: { uniform: {} }, views: { crops: 3 } }
    transforms: [{ resize: { size: [32, 40], keep_ratio: false } }, { center_crop: { size: [32, 32] } }, { normalize: {} }]
optimizer: { adamw: { lr: 1e-3 } }
train: { iterations: 4, batch_size: 3, accumulate: 2, eval_every: 2, log_every: 1 }
";
