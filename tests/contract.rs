//! What every head promises, one line each; and that every config that ships can be read.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[path = "contract/pairs.rs"]
mod pairs;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use ndarray::Array2;
use rescatter::backbone::{Dims, Pass};
use rescatter::config::{OptimizerConfig, load};
use rescatter::data::{Batch, InstanceMask, Instances, LabelMap};
use rescatter::engine::Optimizer;
use rescatter::engine::step::{Moment, StepGradients, step_gradients};
use rescatter::head::{Head, ImageMeta};
use rescatter::model::Model;
use rescatter::params::Role;
use rescatter::rng::{Purpose, Rng};
use rescatter::weights::checkpoint;
use rescatter::world::World;
use rescatter_heads::{Config, TaskModel};

const CLASSES: usize = 3;
const SIDE: usize = 32;

/// A config with the given task and sections beside a tiny backbone: 4 × 4 patches, two blocks, adapters, dispatch.
fn config(task: &str, sections: &str) -> Config {
    let (dispatch, tuning) =
        ("{ variant: mlp, target_rate: 0.3 }", "{ adapter: { bottleneck: 8, scale: 1.0 } }");
    configured(task, dispatch, tuning, sections)
}

/// The same with other sections `dispatch` and `tuning`.
fn configured(task: &str, dispatch: &str, tuning: &str, sections: &str) -> Config {
    let reader = match task {
        "segmentation" => "ade20k: { images: a, labels: b, classes: [sky, road, tree] }",
        "detection" => "coco: { images: a, annotations: b }",
        "video" => {
            "video_list: { root: a, file: b, classes: [sky, road, tree], sampling: { uniform: {} }, frames: 3 }"
        }
        _ => "image_folder: { root: a, classes: [sky, road, tree] }",
    };
    let split = format!("{{ {reader}, transforms: [normalize: {{}}] }}");
    let yaml = format!(
        "task: {task}\n\
         backbone: {{ embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8, layer_scale: true, pos_embed_grid: [4, 4] }}\n\
         dispatch: {dispatch}\n\
         tuning: {tuning}\n\
         data: {{ train: {split}, val: {split} }}\n\
         train: {{ iterations: 100, batch_size: 2 }}\n\
         {sections}\n"
    );
    load::parse(&yaml, Path::new("contract.yaml"), &[]).unwrap()
}

fn segmentation(sections: &str) -> Model<rescatter_heads::SegmentationHead> {
    match TaskModel::new(&config("segmentation", sections), CLASSES, &Device::Cpu).unwrap() {
        TaskModel::Segmentation(model) => model,
        _ => panic!("asked for segmentation"),
    }
}

fn classification(sections: &str) -> Model<rescatter_heads::ClassifierHead> {
    match TaskModel::new(&config("classification", sections), CLASSES, &Device::Cpu).unwrap() {
        TaskModel::Classification(model) => model,
        _ => panic!("asked for classification"),
    }
}

fn detection(sections: &str) -> Model<rescatter_heads::MaskRcnn> {
    match TaskModel::new(&config("detection", sections), CLASSES, &Device::Cpu).unwrap() {
        TaskModel::Detection(model) => model,
        _ => panic!("asked for detection"),
    }
}

/// A model of clips of three frames.
fn video(head: &str, overrides: &[&str]) -> Model<rescatter_heads::TemporalHead> {
    let mut config = config("video", head);
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    if !overrides.is_empty() {
        let text = load::to_yaml(&config).unwrap();
        config = load::parse(&text, Path::new("contract.yaml"), &overrides).unwrap();
    }
    match TaskModel::new(&config, CLASSES, &Device::Cpu).unwrap() {
        TaskModel::Video(model) => model,
        _ => panic!("asked for video"),
    }
}

/// Two rectangles of different classes in each image, one of them an ellipse inside its box; and a crowd.
fn instances() -> Vec<Instances> {
    let image = |turn: usize| {
        let boxes = [[2.0, 3.0, 14.0 + turn as f32, 13.0], [15.0, 12.0, 31.0, 30.0]];
        let mask = |b: &[f32; 4]| {
            let (x, y) = (b[0] as usize, b[1] as usize);
            let size = (b[3] as usize - y, b[2] as usize - x);
            let centred = |i: usize, n: usize| (2 * i + 1) as f32 / n as f32 - 1.0;
            let inside = |(i, j)| centred(i, size.0).powi(2) + centred(j, size.1).powi(2) < 1.0;
            InstanceMask {
                origin: (y, x),
                bitmap: Array2::from_shape_fn(size, |p| u8::from(inside(p))),
            }
        };
        Instances {
            size: (SIDE, SIDE),
            masks: boxes.iter().map(mask).collect(),
            boxes: boxes.to_vec(),
            classes: vec![turn as u32, 2],
            crowds: vec![[0.0, 20.0, 12.0, 32.0]],
        }
    };
    (0..2).map(image).collect()
}

/// Quarters of the image: two classes, a third, and one quarter that is ignored.
fn label_maps() -> Vec<LabelMap> {
    let quarter = |y: usize, x: usize, turn: usize| {
        [0, 1, 2, 255][(2 * (y * 2 / SIDE) + x * 2 / SIDE + turn) % 4]
    };
    (0..2).map(|turn| LabelMap::from_shape_fn((SIDE, SIDE), |(y, x)| quarter(y, x, turn))).collect()
}

fn batch<T>(targets: Vec<T>) -> Batch<T> {
    clips(targets, 1)
}

/// Two clips of `frames` frames.
fn clips<T>(targets: Vec<T>, frames: usize) -> Batch<T> {
    let count = 2 * frames;
    let mut stream = Rng::new(5).stream(Purpose::Synthetic, 0, 0);
    let values: Vec<f32> = (0..count * 3 * SIDE * SIDE).map(|_| stream.normal() as f32).collect();
    let images = Tensor::from_vec(values, (count, 3, SIDE, SIDE), &Device::Cpu).unwrap();
    let size = (SIDE, SIDE);
    let meta =
        |name: &str| ImageMeta { name: name.into(), original: size, input: size, flipped: false };
    Batch { images, targets, metas: vec![meta("a"), meta("b")], samples: vec![0, 1] }
}

fn step<H: Head>(
    model: &Model<H>,
    optimizer: &Optimizer,
    batch: &Batch<H::Target>,
    step: u64,
) -> StepGradients {
    let moment =
        Moment { rng: &Rng::new(3), step, progress: 0.0, loss_scale: 1.0, world: &World::SINGLE };
    step_gradients(model, optimizer.parameters(), std::slice::from_ref(batch), &moment).unwrap()
}

/// Moves everything away from its start, since branches that start at zero have zero gradients behind them: what is trained
/// by `seed`, what is frozen always alike.
fn randomise<H>(model: &Model<H>, seed: u64) -> Result<()> {
    for (i, (name, param)) in model.params.all().into_iter().enumerate() {
        let seed = match param.role {
            Role::Trainable => seed,
            Role::Frozen | Role::Kept => 0,
            Role::Buffer => continue,
        };
        let mut stream = Rng::new(seed).stream(Purpose::Init, i as u64, 0);
        let noise = (0..param.var.elem_count()).map(|_| 0.1 * stream.normal() as f32).collect();
        let noise = Tensor::from_vec(noise, param.var.shape(), &Device::Cpu)?;
        model.params.set(&name, &(param.var.as_detached_tensor() + noise)?)?;
    }
    Ok(())
}

/// All the promises: `build` makes the same model every time.
fn keeps_its_promises<H: Head>(build: impl Fn() -> Model<H>, targets: Vec<H::Target>) {
    keeps_its_promises_on(build, batch(targets));
}

/// The same on another batch.
fn keeps_its_promises_on<H: Head>(build: impl Fn() -> Model<H>, batch: Batch<H::Target>) {
    let random = |seed| {
        let model = build();
        randomise(&model, seed).unwrap();
        model
    };
    gradients_reach_what_is_trained(&random(1), &batch);
    a_round_trip_through_a_file_changes_nothing(&random(1), &random(2), &batch);
    one_batch_can_be_learned_by_heart(&random(1), &batch);
}

fn gradients_reach_what_is_trained<H: Head>(model: &Model<H>, batch: &Batch<H::Target>) {
    let optimizer = Optimizer::new(&OptimizerConfig::default(), &model.params).unwrap();
    let found = step(model, &optimizer, batch, 0);
    assert!(
        found.total.is_finite() && found.terms.iter().all(|(_, value)| value.is_finite()),
        "{:?}",
        found.terms
    );
    let trained: Vec<_> =
        model.params.with_role(Role::Trainable).into_iter().map(|(name, _)| name).collect();
    assert_eq!(optimizer.parameters().len(), trained.len());
    for (parameter, gradient) in optimizer.parameters().iter().zip(&found.gradients) {
        let size = gradient
            .as_ref()
            .map(|g| g.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
        assert!(size.is_some_and(|size| size > 0.0), "no gradient reaches `{}`", parameter.name);
    }
    // Frozen weights enter the graph untracked, so that nothing is computed or kept for them.
    let frozen = model.params.with_role(Role::Frozen);
    assert!(!frozen.is_empty() && frozen.iter().all(|(name, _)| name.starts_with("backbone.")));
    assert!(frozen.iter().all(|(name, _)| !trained.contains(name)));
}

fn a_round_trip_through_a_file_changes_nothing<H: Head>(
    model: &Model<H>,
    other: &Model<H>,
    batch: &Batch<H::Target>,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let own = |model: &Model<H>| -> Vec<_> {
        model.params.all().into_iter().filter(|(_, param)| param.role != Role::Frozen).collect()
    };
    let tensors = own(model)
        .into_iter()
        .map(|(name, param)| (name, param.var.as_detached_tensor()))
        .collect();
    checkpoint::write(&path, &tensors, &Default::default()).unwrap();
    let (read, _) = checkpoint::read(&path).unwrap();
    assert_ne!(
        scores(model, batch),
        scores(other, batch),
        "the models were to differ before the round trip"
    );
    for (name, _) in own(other) {
        other.params.set(&name, &read[&name]).unwrap();
    }
    assert_eq!(scores(model, batch), scores(other, batch));
}

/// The training loss of the batch to its last bit, with every token active: it depends on all that a head computes.
fn scores<H: Head>(model: &Model<H>, batch: &Batch<H::Target>) -> Vec<f32> {
    let rng = Rng::new(3);
    let ctx = rescatter::head::StepContext {
        training: false,
        update_stats: false,
        rng: &rng,
        step: 0,
        progress: 0.0,
        samples: &batch.samples,
        world: &World::SINGLE,
    };
    let frames = batch.images.dim(0).unwrap() / batch.samples.len();
    let pass = Pass::Complete(&ctx);
    let features = model.backbone.forward_clips(&batch.images, frames, &pass).unwrap();
    let losses = model.head.losses(&features, &batch.targets, &ctx).unwrap();
    losses
        .terms
        .iter()
        .map(|term| term.sum.to_dtype(DType::F32).unwrap().to_scalar().unwrap())
        .collect()
}

fn one_batch_can_be_learned_by_heart<H: Head>(model: &Model<H>, batch: &Batch<H::Target>) {
    let mut optimizer = Optimizer::new(&OptimizerConfig::default(), &model.params).unwrap();
    let task_loss = |found: &StepGradients| {
        found.terms.iter().filter(|(name, _)| *name != "rate").map(|(_, value)| value).sum::<f64>()
    };
    let first = task_loss(&step(model, &optimizer, batch, 0));
    let mut last = first;
    for number in 0..80 {
        let found = step(model, &optimizer, batch, number);
        last = task_loss(&found);
        optimizer.step(&found.gradients, 5e-3, 1.0).unwrap();
    }
    assert!(last < first / 3.0, "the loss of one batch fell from {first} to {last} only");
}

#[test]
fn upernet() {
    keeps_its_promises(
        || {
            segmentation(
                "head: { upernet: { taps: [0, 0, 1, 1], channels: 16, aux: { channels: 8 }, dropout: 0.0 } }",
            )
        },
        label_maps(),
    );
}

#[test]
fn upernet_with_every_loss() {
    let sections = "head: { upernet: { taps: [0, 0, 1, 1], channels: 16, aux: null, loss: { cross_entropy: { class_weights: [1, 2, 0.5] }, \
                    ohem: { min_kept: 100 }, dice: {} } } }\n\
                    loss: { complete: 1.0, distill: 1.0 }";
    keeps_its_promises(|| segmentation(sections), label_maps());
}

#[test]
fn linear() {
    keeps_its_promises(|| segmentation("head: { linear: { taps: [0, 1] } }"), label_maps());
}

#[test]
fn classifier() {
    keeps_its_promises(
        || classification("head: { classifier: { pool: cls } }"),
        vec![0.into(), 2.into()],
    );
}

#[test]
fn classifier_on_the_mean_of_the_patches() {
    keeps_its_promises(
        || classification("head: { classifier: { pool: mean } }"),
        vec![0.into(), 2.into()],
    );
}

/// Sizes that fit 32 pixels, few regions, and whatever `more` says.
fn mask_rcnn(more: &str) -> String {
    format!(
        "head: {{ mask_rcnn: {{ channels: 16, anchors: {{ sizes: [6, 10, 14, 20, 28] }}, \
         rpn: {{ sampled: 64, pre_nms: {{ train: 60, test: 60 }}, post_nms: {{ train: 40, test: 40 }} }}, \
         roi: {{ sampled: 32, canonical_size: 16.0 }}, {more} }} }}"
    )
}

#[test]
fn mask_rcnn_with_normalised_heads() {
    let heads = "box_head: { convs: 2, conv_dim: 16, fc_dim: 32 }, mask_head: { dim: 16 }";
    keeps_its_promises(|| detection(&mask_rcnn(heads)), instances());
}

#[test]
fn mask_rcnn_with_two_fully_connected_layers() {
    let heads = "box_head: { convs: 0, fcs: 2, fc_dim: 32, beta: 0.1 }, \
                 mask_head: { dim: 16, norm: none, max_sampled: 4 }";
    keeps_its_promises(|| detection(&mask_rcnn(heads)), instances());
}

#[test]
fn cascade_of_boxes_alone() {
    let heads = "box_head: { convs: 1, conv_dim: 16, fc_dim: 32 }, mask_head: null, cascade: {}, \
                 detections: { suppression: { soft_nms: { decay: { linear: 0.5 } } } }";
    keeps_its_promises(|| detection(&mask_rcnn(heads)), instances());
}

#[test]
fn temporal_query() {
    let build = || video("head: { temporal_query: {} }", &[]);
    keeps_its_promises_on(build, clips(vec![0, 2], 3));
}

#[test]
fn temporal_query_with_every_loss() {
    let sections =
        "head: { temporal_query: { num_heads: 4 } }\nloss: { complete: 1.0, distill: 1.0 }";
    keeps_its_promises_on(|| video(sections, &[]), clips(vec![1, 2], 3));
}

#[test]
fn temporal_transformer_on_an_adapter_over_time() {
    let head = "head: { temporal_transformer: { frames: 3, cells: [2, 1], correlation: 1, dim: 16, num_heads: 2 } }";
    for kernel in ["[3, 1, 1]", "[3, 3, 3]"] {
        let adapter = format!("tuning.st_adapter={{bottleneck: 8, kernel: {kernel}}}");
        keeps_its_promises_on(|| video(head, &[&adapter]), clips(vec![0, 2], 3));
    }
}

#[test]
fn a_head_of_another_task_is_refused() {
    let Err(error) =
        TaskModel::new(&config("segmentation", "head: { classifier: {} }"), CLASSES, &Device::Cpu)
    else {
        panic!("a classifier cannot segment")
    };
    assert_eq!(error.to_string(), "`head.classifier` is no head of the task `segmentation`");
    assert!(error.hint().is_some());
}

/// Every `.yaml` directly in `configs/`.
fn shipped_configs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn every_shipped_config_is_read_and_the_small_ones_are_built() {
    let mut built = 0;
    for path in shipped_configs() {
        let mut config: Config = load::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let dims = Dims::new(&config.backbone).unwrap();
        let taps = config.head.reads(dims.depth).taps;
        assert!(taps.iter().all(|&tap| tap < dims.depth), "{}: taps {taps:?}", path.display());
        // The run that a task is added to need not be there.
        if dims.dim <= 384 && config.extends.is_none() {
            // Nor need the file of the pretrained weights.
            config.backbone.weights = None;
            TaskModel::new(&config, 11, &Device::Cpu)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            built += 1;
        }
    }
    assert!(built >= 4, "only {built} configs were built");
}
