//! Every published layout loads with nothing unmatched, and a file that does not fit is refused with its cure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[path = "weights/commands.rs"]
mod commands;
#[path = "weights/formats.rs"]
mod formats;
#[path = "weights/layouts.rs"]
mod layouts;
#[path = "weights/misfits.rs"]
mod misfits;
#[path = "weights/positions.rs"]
mod positions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rescatter::backbone::pyramid::DytPyramid;
use rescatter::backbone::{Reads, Vit};
use rescatter::config::load;
use rescatter::config::{
    AdapterConfig, Arch, BackboneConfig, BackboneTuning, DispatchConfig, Placement, RelPosConfig,
    TuningConfig, Variant, WindowConfig, WindowPadding,
};
use rescatter::engine::checkpoint::{self as engine, BackboneFile, Meta, Thresholds};
use rescatter::head::FeatureSpec;
use rescatter::params::{Init, ParamStore};
use rescatter::weights::names::{NameMap, to_timm};
use rescatter::weights::{File, Format, Layout, LoadOptions, checkpoint, load_pretrained, sha256};
use rescatter_heads::run::Which;
use rescatter_heads::{Config, MaskRcnn, MaskRcnnConfig, TaskModel, Trained};

type Shapes = BTreeMap<String, Vec<usize>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// One `name d0 d1 …` per line.
fn keys(name: &str) -> Shapes {
    let text = std::fs::read_to_string(fixture(&format!("keys/{name}.txt"))).unwrap();
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap().to_owned(), words.map(|word| word.parse().unwrap()).collect())
        })
        .collect()
}

/// A ViT of timm's tiny fixture (width 8, depth 2, patch 4, grid 3 × 3) unless changed.
fn tiny() -> BackboneConfig {
    BackboneConfig {
        arch: None,
        embed_dim: Some(8),
        depth: Some(2),
        num_heads: Some(2),
        mlp_ratio: Some(2.0),
        patch_size: 4,
        layer_scale: false,
        cls_token: true,
        reg_tokens: 0,
        no_embed_class: false,
        pos_embed_grid: [3, 3],
        window: None,
        rel_pos: None,
        weights: None,
        drop_path: 0.0,
    }
}

fn store(cfg: &BackboneConfig, variant: Variant) -> ParamStore {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    let adapter = AdapterConfig {
        bottleneck: 4,
        scale: 0.1,
        dropout: 0.0,
        experts: 1,
        placement: Placement::Parallel,
    };
    let tuning = TuningConfig {
        backbone: BackboneTuning::Frozen,
        adapter: (variant != Variant::None).then_some(adapter),
        ..TuningConfig::default()
    };
    let dispatch = DispatchConfig { variant, ..DispatchConfig::default() };
    Vit::new(cfg, &dispatch, &tuning, &Reads::all(&[0]), &store.root().pp("backbone")).unwrap();
    store
}

fn options(cfg: &BackboneConfig) -> LoadOptions<'static> {
    LoadOptions::backbone(cfg.pos_embed_grid)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn loaded(store: &ParamStore, name: &str) -> Vec<f32> {
    values(store.get(name).unwrap().var.as_tensor())
}

/// What `make.py` fills a tensor with.
fn filling(name: &str, count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 256) as f32 / 8.0 + name.len() as f32).collect()
}

/// The file's tensors under DINOv2's names with two registers and layer scale.
fn with_registers(folder: &Path) -> PathBuf {
    let mut tensors = File::read(&fixture("weights/vit_zip.pth")).unwrap().tensors;
    let vector = |n: usize| Tensor::new(filling("reg", n), &Device::Cpu).unwrap();
    tensors.insert("register_tokens".into(), vector(16).reshape((1, 2, 8)).unwrap());
    tensors.insert("mask_token".into(), vector(8).reshape((1, 8)).unwrap());
    for name in ["blocks.0.ls1", "blocks.0.ls2", "blocks.1.ls1", "blocks.1.ls2"] {
        tensors.insert(format!("{name}.gamma"), vector(8));
    }
    let path = folder.join("dinov2_reg.safetensors");
    checkpoint::write(&path, &tensors, &checkpoint::Metadata::new()).unwrap();
    path
}

fn without_head(tensors: &checkpoint::Tensors) -> checkpoint::Tensors {
    tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("head."))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect()
}
