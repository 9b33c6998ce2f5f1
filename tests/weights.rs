//! Every published layout loads with nothing unmatched, and a file that does not fit is refused with its cure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rescatter::backbone::Vit;
use rescatter::backbone::pyramid::DytPyramid;
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

/// Tensors of these shapes without memory of their own.
fn tensors(shapes: &Shapes) -> checkpoint::Tensors {
    let one = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
    let tensor = |shape: &Vec<usize>| {
        one.broadcast_as(shape.as_slice()).or_else(|_| one.reshape(())).unwrap()
    };
    shapes.iter().map(|(name, shape)| (name.clone(), tensor(shape))).collect()
}

/// The renamed shapes and what was ignored.
fn renamed(list: &str, map: NameMap) -> (Shapes, Vec<String>) {
    let renamed = to_timm(&tensors(&keys(list))).unwrap();
    assert_eq!(renamed.map, map, "{list}");
    (
        renamed.tensors.iter().map(|(name, t)| (name.clone(), t.dims().to_vec())).collect(),
        renamed.ignored,
    )
}

/// `list` without the tensors whose names start with one of `prefixes`.
fn without(list: Shapes, prefixes: &[&str]) -> Shapes {
    list.into_iter()
        .filter(|(name, _)| !prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

#[test]
fn google_and_hugging_face_vit_become_timms() {
    let timm = keys("timm_vit_base_patch16_224");
    let (own, ignored) = renamed("timm_vit_base_patch16_224", NameMap::Timm);
    assert!(own == timm && ignored.is_empty());

    let (google, ignored) = renamed("google_vit_b_16", NameMap::Google);
    assert_eq!(google["head.weight"], [21843, 768]);
    assert_eq!(without(google, &["head."]), without(timm.clone(), &["head."]));
    assert_eq!(ignored, ["pre_logits/bias", "pre_logits/kernel"]);

    let (classifier, ignored) = renamed("hf_google_vit_base_patch16_224", NameMap::HuggingFaceVit);
    assert_eq!(classifier, timm);
    assert!(ignored.is_empty());

    let (model, ignored) = renamed("hf_google_vit_base_patch16_224_in21k", NameMap::HuggingFaceVit);
    assert_eq!(model, without(timm, &["head."]));
    assert_eq!(ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn every_dinov2_layout_becomes_timms() {
    let timm = keys("timm_vit_small_patch14_dinov2");
    assert_eq!(renamed("timm_vit_small_patch14_dinov2", NameMap::Timm).0, timm);
    for list in ["dinov2_vits14", "dinov2_vits14_chunked"] {
        assert_eq!(
            renamed(list, NameMap::Dinov2),
            (timm.clone(), vec!["mask_token".into()]),
            "{list}"
        );
    }
    let hugging_face = renamed("hf_facebook_dinov2_small", NameMap::HuggingFaceDinov2);
    assert_eq!(hugging_face, (timm, vec!["embeddings.mask_token".into()]));

    // timm keeps no class row in the position embedding of the models with registers; the loader moves it.
    let mut registers = keys("timm_vit_small_patch14_reg4_dinov2");
    assert_eq!(renamed("timm_vit_small_patch14_reg4_dinov2", NameMap::Timm).0, registers);
    registers.insert("pos_embed".into(), vec![1, 1370, 384]);
    assert_eq!(renamed("dinov2_vits14_reg4", NameMap::Dinov2).0, registers);
    assert_eq!(
        renamed("hf_facebook_dinov2_with_registers_small", NameMap::HuggingFaceDinov2).0,
        registers
    );
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
    Vit::new(cfg, &dispatch, &tuning, &[0], &store.root().pp("backbone")).unwrap();
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

/// ViTDet's tiny cousin: block 0 in windows of 2 × 2 patches, block 1 over the image.
fn windowed(rel_pos: Option<[usize; 2]>) -> BackboneConfig {
    let window =
        WindowConfig { size: 2, global_blocks: vec![1], padding: WindowPadding::default() };
    let rel_pos = rel_pos.map(|grid| RelPosConfig { grid });
    BackboneConfig { cls_token: false, window: Some(window), rel_pos, ..tiny() }
}

/// What `make.py` fills a tensor with.
fn filling(name: &str, count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 256) as f32 / 8.0 + name.len() as f32).collect()
}

#[test]
fn both_publishers_of_vitdet_name_one_model() {
    let vit_b = BackboneConfig {
        arch: Some(Arch::VitB),
        embed_dim: None,
        depth: None,
        num_heads: None,
        mlp_ratio: None,
        patch_size: 16,
        pos_embed_grid: [14, 14],
        window: Some(WindowConfig {
            size: 14,
            global_blocks: vec![2, 5, 8, 11],
            padding: WindowPadding::default(),
        }),
        ..windowed(Some([64, 64]))
    };
    let store = store(&vit_b, Variant::None);
    let shape = |name: &str| store.get(name).unwrap().var.dims().to_vec();
    // A class row before the positions is stored and never read; the final norm is not ViTDet's.
    let mut own: Shapes = store.all().into_iter().map(|(n, _)| (n.clone(), shape(&n))).collect();
    own.insert("backbone.pos_embed".into(), vec![1, 197, 768]);
    let own = without(own, &["backbone.norm."]);
    assert_eq!(renamed("detectron2_vitdet_b", NameMap::Detectron2), (own.clone(), vec![]));
    let (hugging_face, ignored) = renamed("hf_vitdet_b", NameMap::HuggingFaceVitDet);
    let below: Shapes =
        hugging_face.into_iter().map(|(n, shape)| (format!("backbone.{n}"), shape)).collect();
    assert_eq!((below, ignored), (own, vec![]));
    let layout = Layout::of(&tensors(&keys("detectron2_vitdet_b")), "backbone.net.").unwrap();
    assert!(
        layout.config().ends_with(
            "cls_token: false, window: { size: 14, global_blocks: [2, 5, 8, 11] }, rel_pos: { grid: [64, 64] }"
        ),
        "{}",
        layout.config()
    );
}

/// The tiny ViT as a detectron2 file with tables for windows of 2 and an image of 2 × 3 patches.
fn detectron2_file(folder: &Path) -> PathBuf {
    let plain = File::read(&fixture("weights/vit_zip.pth")).unwrap().tensors;
    let mut tensors: checkpoint::Tensors = without_head(&plain)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("norm.") && name != "cls_token")
        .map(|(name, tensor)| (format!("backbone.net.{name}"), tensor))
        .collect();
    for (block, axis, rows) in [(0, 'h', 3), (0, 'w', 3), (1, 'h', 3), (1, 'w', 5)] {
        let name = format!("backbone.net.blocks.{block}.attn.rel_pos_{axis}");
        let ramp: Vec<f32> = (0..rows * 4).map(|i| (i / 4) as f32).collect();
        tensors.insert(name, Tensor::from_vec(ramp, (rows, 4), &Device::Cpu).unwrap());
    }
    tensors.insert(
        "backbone.simfp_2.0.bias".into(),
        Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
    );
    let path = folder.join("vitdet.safetensors");
    checkpoint::write(&path, &tensors, &checkpoint::Metadata::new()).unwrap();
    path
}

#[test]
fn relative_positions_are_loaded_and_interpolated() {
    let folder = tempfile::tempdir().unwrap();
    let path = detectron2_file(folder.path());
    let cfg = windowed(Some([2, 4]));
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&path, &store, &options(&cfg)).unwrap();
    assert_eq!(report.map, NameMap::Detectron2);
    assert_eq!(report.missing, ["backbone.norm.bias", "backbone.norm.weight"]);
    assert_eq!(report.unexpected, ["backbone.simfp_2.0.bias"]);
    assert_eq!(
        report.resized,
        ["pos_embed of 1 prefix tokens → 0", "backbone.blocks.1.attn.rel_pos_w of 5 distances → 7"]
    );
    // The ramp 0 1 2 3 4 at 5/7 (j + ½) − ½, its ends kept.
    let found = loaded(&store, "backbone.blocks.1.attn.rel_pos_w");
    let expected = [0.0, 4.0 / 7.0, 9.0 / 7.0, 2.0, 19.0 / 7.0, 24.0 / 7.0, 4.0];
    for (row, expected) in found.chunks(4).zip(expected) {
        assert!(row.iter().all(|v| (v - expected).abs() < 1e-5), "{row:?} for {expected}");
    }
    assert_eq!(loaded(&store, "backbone.pos_embed"), filling("pos_embed", 80)[8..]);

    let without = windowed(None);
    let plain = self::store(&without, Variant::None);
    let error = load_pretrained(&path, &plain, &options(&without)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("parts that the model does not have: backbone.blocks.0.attn.rel_pos_h")
    );
    assert!(error.hint().unwrap().contains("rel_pos: { grid: [2, 3] }"), "{error:?}");
}

#[test]
fn a_plain_vit_loads_into_windows_without_its_class_token() {
    for rel_pos in [None, Some([3, 3])] {
        let cfg = windowed(rel_pos);
        let store = store(&cfg, Variant::None);
        let path = fixture("weights/vit_zip.pth");
        let report = load_pretrained(&path, &store, &options(&cfg)).unwrap();
        assert!(report.ignored.contains(&"backbone.cls_token".to_owned()), "{report}");
        assert_eq!(report.missing.len(), if rel_pos.is_some() { 4 } else { 0 }, "{report}");
        assert!(report.missing.iter().all(|name| name.contains(".attn.rel_pos_")), "{report}");
        assert_eq!(loaded(&store, "backbone.pos_embed"), filling("pos_embed", 80)[8..]);
    }
}

#[test]
fn the_published_dyt_files_match_the_model_by_name() {
    let twelve = BackboneConfig { depth: Some(12), ..tiny() };
    let store = store(&twelve, Variant::Mlp);
    DytPyramid::new(8, &store.root().pp("backbone")).unwrap();
    let all: BTreeSet<String> = store.all().into_iter().map(|(name, _)| name).collect();
    let names = |list: &Shapes, keep: &str| -> BTreeSet<String> {
        list.keys().filter(|name| name.contains(keep)).cloned().collect()
    };

    let image = renamed("dyt_image_vit_b16", NameMap::Dyt).0;
    let own: BTreeSet<String> =
        all.iter().filter(|n| !n.contains("fpn")).map(|n| n.replacen("backbone.", "", 1)).collect();
    assert_eq!(names(&without(image, &["head."]), ""), own);

    let video = renamed("dyt_video_vit_b16", NameMap::Dyt).0;
    assert_eq!(
        names(&without(video.clone(), &["head.", "query_token", "attentive_blocks."]), ""),
        own
    );
    assert_eq!(names(&video, "attentive_blocks.").len(), 6 + 7);

    let (segmentation, ignored) = renamed("dyt_segmentation_vit_b16", NameMap::Segmentor);
    let expected: BTreeSet<String> =
        all.iter().filter(|n| !n.starts_with("backbone.norm.")).cloned().collect();
    assert_eq!(names(&segmentation, "backbone."), expected);
    assert!(ignored.iter().all(|name| name.ends_with("num_batches_tracked")));
}

/// The same transformer in every container and naming.
#[test]
fn the_same_model_loads_from_every_format() {
    let cases = [
        ("vit_zip.pth", Format::TorchZip, NameMap::Timm),
        ("vit_protocol4.pth", Format::TorchZip, NameMap::Timm),
        ("vit_legacy.pth", Format::TorchLegacy, NameMap::Timm),
        ("vit_f16.safetensors", Format::Safetensors, NameMap::Timm),
        ("vit_bf16.safetensors", Format::Safetensors, NameMap::Timm),
        ("vit.npz", Format::Npz, NameMap::Google),
        ("vit_protocol2.pkl", Format::Pickle, NameMap::Timm),
        ("vit_protocol4.pkl", Format::Pickle, NameMap::Timm),
        ("vit_protocol5.pkl", Format::Pickle, NameMap::Timm),
        ("nested.pth", Format::TorchZip, NameMap::Timm),
        ("nested_legacy.pth", Format::TorchLegacy, NameMap::Timm),
    ];
    for (name, format, map) in cases {
        let path = fixture(&format!("weights/{name}"));
        let store = store(&tiny(), Variant::Mlp);
        let report = load_pretrained(&path, &store, &options(&tiny())).unwrap();
        assert_eq!((report.format, report.map), (format, map), "{name}");
        assert_eq!(report.matched.len(), 4 + 2 * 12 + 2, "{name}");
        assert!(
            report.missing.iter().all(|n| n.contains("adaptmlp.") || n.contains("token_select.")),
            "{name}"
        );
        assert_eq!(report.missing.len(), 2 * (4 + 2), "{name}");
        assert!(report.unexpected.is_empty() && report.resized.is_empty(), "{name}: {report}");
        assert_eq!(report.ignored, ["head.bias", "head.weight"], "{name}");
        for parameter in &report.matched {
            let own = parameter.strip_prefix("backbone.").unwrap();
            let found = loaded(&store, parameter);
            let rounding = if name.contains("bf16") {
                0.2
            } else if name.contains("f16") {
                0.02
            } else {
                0.0
            };
            for (found, expected) in found.iter().zip(filling(own, found.len())) {
                assert!(
                    (found - expected).abs() <= rounding,
                    "{name}: {parameter}: {found} for {expected}"
                );
            }
        }
        assert_eq!(report.sha256, sha256(&path).unwrap());
    }
}

#[test]
fn views_shared_memory_and_every_type_of_torch_are_read() {
    for name in ["odd.pth", "odd_legacy.pth"] {
        let file = File::read(&fixture(&format!("weights/{name}"))).unwrap();
        let shapes: BTreeMap<&str, (DType, Vec<usize>)> = file
            .tensors
            .iter()
            .map(|(n, t)| (n.as_str(), (t.dtype(), t.dims().to_vec())))
            .collect();
        let expected = BTreeMap::from([
            ("transposed", (DType::F32, vec![3, 5])),
            ("row_of_a_matrix", (DType::F32, vec![6])),
            ("column_of_a_matrix", (DType::F32, vec![6])),
            ("permuted", (DType::F32, vec![2, 3, 4])),
            ("channels_last", (DType::F32, vec![2, 3, 2, 2])),
            ("tied", (DType::F32, vec![4])),
            ("tied_again", (DType::F32, vec![4])),
            ("parameter", (DType::F32, vec![2, 2])),
            ("scalar", (DType::F32, vec![])),
            ("empty", (DType::F32, vec![0, 3])),
            ("f16", (DType::F16, vec![3])),
            ("bf16", (DType::BF16, vec![3])),
            ("f64", (DType::F64, vec![3])),
            ("i64", (DType::I64, vec![2])),
            ("i32", (DType::I32, vec![2])),
            ("bool", (DType::U8, vec![2])),
        ]);
        assert_eq!(shapes, expected, "{name}");
        for (own, tensor) in &file.tensors {
            match (own.as_str(), tensor.dtype()) {
                ("tied_again", _) => assert_eq!(values(tensor), filling("tied", 4)),
                ("i64", _) => assert_eq!(tensor.to_vec1::<i64>().unwrap(), [-3, 4]),
                ("i32", _) => assert_eq!(tensor.to_vec1::<i32>().unwrap(), [-3, 4]),
                ("bool", _) => assert_eq!(tensor.to_vec1::<u8>().unwrap(), [1, 0]),
                _ => assert_eq!(values(tensor), filling(own, tensor.elem_count()), "{name}: {own}"),
            }
        }
    }
    let nested = File::read(&fixture("weights/nested.pth")).unwrap();
    assert_eq!(nested.nesting, ["model"]);
    assert_eq!(nested.beside, ["optimizer", "epoch", "args", "scaler"]);
}

#[test]
fn a_python_object_is_refused_and_not_built() {
    let error = File::read(&fixture("weights/whole_module.pth")).unwrap_err();
    assert!(
        error.to_string().contains("whole_module.pth") && error.to_string().contains("Linear"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("state_dict()"));
}

#[test]
fn a_truncated_file_of_any_format_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["vit_zip.pth", "vit_legacy.pth", "vit_f16.safetensors", "vit.npz", "vit_protocol4.pkl"]
    {
        let bytes = std::fs::read(fixture(&format!("weights/{name}"))).unwrap();
        let path = folder.path().join(name);
        for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = File::read(&path)
                .err()
                .unwrap_or_else(|| panic!("{name} cut to {length} bytes was read"));
            assert!(
                error.to_string().contains(name) && error.hint().is_some(),
                "{length}: {error}"
            );
        }
    }
}

#[test]
fn what_is_no_checkpoint_is_named_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[u8], &str); 5] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
        (b"hello, world", "known format"),
    ];
    for (bytes, expected) in cases {
        let path = folder.path().join("weights.pth");
        std::fs::write(&path, bytes).unwrap();
        let error = File::read(&path).unwrap_err();
        assert!(error.to_string().contains(expected) && error.hint().is_some(), "{error}");
    }
    assert!(File::read(folder.path()).unwrap_err().to_string().contains("folder"));
}

/// Bicubic interpolation keeps a constant and, away from the border, a ramp.
#[test]
fn a_position_embedding_of_another_grid_is_resized() {
    let cfg = BackboneConfig { pos_embed_grid: [6, 9], ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&fixture("weights/vit_zip.pth"), &store, &options(&cfg)).unwrap();
    assert_eq!(report.resized, ["pos_embed 3×3 → 6×9"]);
    let found = loaded(&store, "backbone.pos_embed");
    assert_eq!(found.len(), (1 + 6 * 9) * 8);
    let stored = filling("pos_embed", 10 * 8);
    assert_eq!(found[..8], stored[..8], "the class row stays");
    // The stored rows rise by 1 per column and by 3 per row; the centre of both grids is the same place.
    let middle: Vec<f32> = (0..8)
        .map(|c| (found[(1 + 2 * 9 + 4) * 8 + c] + found[(1 + 3 * 9 + 4) * 8 + c]) / 2.0)
        .collect();
    for (found, expected) in middle.iter().zip(&stored[5 * 8..]) {
        assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
    }
}

#[test]
fn class_rows_of_the_position_embedding_move_into_the_tokens() {
    let cfg = BackboneConfig { no_embed_class: true, ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&fixture("weights/vit_zip.pth"), &store, &options(&cfg)).unwrap();
    assert_eq!(report.resized, ["pos_embed of 1 prefix tokens → 0"]);
    let positions = filling("pos_embed", 10 * 8);
    assert_eq!(loaded(&store, "backbone.pos_embed"), positions[8..]);
    let class: Vec<f32> =
        filling("cls_token", 8).iter().zip(&positions).map(|(a, b)| a + b).collect();
    assert_eq!(loaded(&store, "backbone.cls_token"), class);
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

#[test]
fn registers_without_positions_get_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_registers(folder.path());
    let cfg = BackboneConfig { reg_tokens: 2, layer_scale: true, ..tiny() };
    let store = store(&cfg, Variant::None);
    let report = load_pretrained(&path, &store, &options(&cfg)).unwrap();
    assert_eq!((report.map, report.missing.len()), (NameMap::Dinov2, 0));
    let (found, stored) = (loaded(&store, "backbone.pos_embed"), filling("pos_embed", 80));
    assert_eq!(found[..8], stored[..8]);
    assert!(found[8..24].iter().all(|&value| value == 0.0));
    assert_eq!(found[24..], stored[8..]);
    assert_eq!(loaded(&store, "backbone.reg_token"), filling("reg", 16));
}

#[test]
fn the_wrong_model_is_refused_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let registers = with_registers(folder.path());
    let plain = fixture("weights/vit_zip.pth");
    let cases = [
        (
            &plain,
            BackboneConfig { embed_dim: Some(16), ..tiny() },
            "is [8] in the file and [16] in the model",
            "embed_dim: 8",
        ),
        (
            &plain,
            BackboneConfig { patch_size: 2, ..tiny() },
            "patch_embed.proj.weight",
            "patch_size: 4",
        ),
        (
            &plain,
            BackboneConfig { depth: Some(3), ..tiny() },
            "lacks parameters of the model: backbone.blocks.2",
            "depth: 2",
        ),
        (
            &plain,
            BackboneConfig { depth: Some(1), ..tiny() },
            "parts that the model does not have: backbone.blocks.1",
            "depth: 2",
        ),
        (
            &plain,
            BackboneConfig { layer_scale: true, ..tiny() },
            "lacks parameters of the model: backbone.blocks.0.ls1",
            "layer_scale: false",
        ),
        (
            &plain,
            BackboneConfig { reg_tokens: 2, ..tiny() },
            "lacks parameters of the model: backbone.reg_token",
            "backbone: {",
        ),
        (
            &registers,
            BackboneConfig { layer_scale: true, ..tiny() },
            "backbone.reg_token",
            "reg_tokens: 2",
        ),
        (
            &registers,
            BackboneConfig { reg_tokens: 2, ..tiny() },
            "backbone.blocks.0.ls1",
            "layer_scale: true",
        ),
    ];
    for (path, cfg, reason, cure) in cases {
        let store = store(&cfg, Variant::None);
        let before = loaded(&store, "backbone.norm.weight");
        let error = load_pretrained(path, &store, &options(&cfg)).unwrap_err();
        let (text, hint) = (error.to_string(), error.hint().unwrap());
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(file) && text.contains(reason), "{reason}: {text}");
        assert!(hint.contains(cure), "{cure}: {hint}");
        assert_eq!(loaded(&store, "backbone.norm.weight"), before);
    }
}

/// A head comes along whole; only its classifier may be of other classes.
#[test]
fn heads_of_a_segmentation_checkpoint_are_loaded_too() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segmentor.safetensors");
    let plain = without_head(&File::read(&fixture("weights/vit_zip.pth")).unwrap().tensors);
    let write = |extra: &[(&str, &[usize])]| {
        let mut tensors: checkpoint::Tensors = plain
            .iter()
            .map(|(name, tensor)| (format!("backbone.{name}"), tensor.clone()))
            .collect();
        tensors.extend(extra.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))));
        checkpoint::write(&path, &tensors, &checkpoint::Metadata::new()).unwrap();
    };
    let model = || {
        let store = store(&tiny(), Variant::None);
        let head = store.root().pp("decode_head");
        head.param("conv_seg.weight", (3, 8), Init::Const(1.0)).unwrap();
        head.param("bottleneck.conv.weight", (8, 8), Init::Const(1.0)).unwrap();
        store
    };
    let load = |store: &ParamStore| load_pretrained(&path, store, &options(&tiny()));

    let known: (&str, &[usize]) = ("decode_head.bottleneck.conv.weight", &[8, 8]);
    write(&[
        known,
        ("decode_head.conv_seg.weight", &[5, 8]),
        ("auxiliary_head.conv_seg.weight", &[5, 8]),
    ]);
    let store = model();
    let report = load(&store).unwrap();
    assert_eq!(report.map, NameMap::Segmentor);
    assert_eq!(loaded(&store, "decode_head.bottleneck.conv.weight"), [0.0; 64]);
    assert_eq!(loaded(&store, "decode_head.conv_seg.weight"), [1.0; 24]);
    assert_eq!(report.missing, ["decode_head.conv_seg.weight"]);
    assert_eq!(report.ignored, ["auxiliary_head.conv_seg.weight", "decode_head.conv_seg.weight"]);

    write(&[
        ("decode_head.bottleneck.conv.weight", &[8, 4]),
        ("decode_head.conv_seg.weight", &[3, 8]),
    ]);
    let error = load(&model()).unwrap_err().to_string();
    assert!(
        error.contains("`decode_head.bottleneck.conv.weight` is [8, 4] in the file"),
        "{error}"
    );

    write(&[("decode_head.conv_seg.weight", &[3, 8])]);
    let error = load(&model()).unwrap_err().to_string();
    assert!(error.contains("lacks parameters of the model: decode_head.bottleneck"), "{error}");
}

fn without_head(tensors: &checkpoint::Tensors) -> checkpoint::Tensors {
    tensors
        .iter()
        .filter(|(name, _)| !name.starts_with("head."))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect()
}

#[test]
fn names_of_no_known_layout_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet.safetensors");
    let tensors = BTreeMap::from([(
        "layer1.0.conv1.weight".to_owned(),
        Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap(),
    )]);
    checkpoint::write(&path, &tensors, &checkpoint::Metadata::new()).unwrap();
    let error =
        load_pretrained(&path, &store(&tiny(), Variant::None), &options(&tiny())).unwrap_err();
    assert!(error.to_string().contains("layer1.0.conv1.weight"), "{error}");
}

#[test]
fn a_relative_position_bias_is_refused_because_the_model_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = File::read(&fixture("weights/vit_zip.pth")).unwrap().tensors;
    let table = Tensor::zeros((28, 2), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("blocks.0.attn.relative_position_bias_table".into(), table);
    let path = folder.path().join("beit.safetensors");
    checkpoint::write(&path, &tensors, &checkpoint::Metadata::new()).unwrap();
    let error =
        load_pretrained(&path, &store(&tiny(), Variant::None), &options(&tiny())).unwrap_err();
    assert!(error.hint().unwrap().contains("relative position bias"), "{error}");
}

#[test]
fn the_pretrained_vit_s14_loads_completely() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/weights/vit_s14_dinov2_layout_f16.safetensors");
    if !path.exists() {
        println!(
            "skipped: the_pretrained_vit_s14_loads_completely because {} is not there",
            path.display()
        );
        return;
    }
    let cfg = BackboneConfig {
        embed_dim: Some(384),
        depth: Some(12),
        num_heads: Some(6),
        mlp_ratio: None,
        patch_size: 14,
        layer_scale: true,
        pos_embed_grid: [37, 37],
        ..tiny()
    };
    let store = store(&cfg, Variant::Mlp);
    let report = load_pretrained(&path, &store, &options(&cfg)).unwrap();
    println!("{report}");
    assert_eq!(report.matched.len(), 174);
    assert_eq!(report.missing.len(), 12 * (4 + 2));
    assert!(report.unexpected.is_empty() && report.ignored.is_empty() && report.resized.is_empty());
    let norm = loaded(&store, "backbone.norm.weight");
    assert!(
        norm.iter().all(|value| value.is_finite() && *value != 1.0),
        "a trained norm is not its initial value"
    );
}

fn rescatter(arguments: &[&str]) -> assert_cmd::assert::Assert {
    assert_cmd::Command::cargo_bin("rescatter").unwrap().args(arguments).assert()
}

#[test]
fn inspect_tells_format_names_and_model() {
    let path = fixture("weights/vit.npz");
    let output = rescatter(&["weights", "inspect", path.to_str().unwrap(), "--json"]).success();
    let summary: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(summary["format"], "NumPy archive");
    assert_eq!(summary["names"], "Google npz");
    assert_eq!(summary["model"], "ViT of width 8, depth 2, MLP 16, patch 4, 10 positions");
    assert_eq!(
        summary["backbone"],
        "embed_dim: 8, depth: 2, num_heads: …, mlp_ratio: 2, patch_size: 4, layer_scale: false, pos_embed_grid: [3, 3]"
    );
    assert_eq!(summary["tensors"]["embedding/kernel"]["shape"], serde_json::json!([4, 4, 3, 8]));
    assert_eq!(summary["sha256"].as_str().unwrap(), sha256(&path).unwrap());

    let output =
        rescatter(&["weights", "inspect", fixture("weights/nested.pth").to_str().unwrap()])
            .success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(
        text.contains("module.blocks.1.mlp.fc2.weight")
            && text.contains("beside      optimizer, epoch, args"),
        "{text}"
    );
}

#[test]
fn a_converted_file_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("vit.safetensors");
    let source = fixture("weights/vit.npz");
    let arguments =
        ["weights", "convert", source.to_str().unwrap(), "--output", output.to_str().unwrap()];
    rescatter(&[&arguments[..], &["--to", "timm", "--dtype", "f16"]].concat()).success();
    let (tensors, metadata) = checkpoint::read(&output).unwrap();
    assert_eq!(metadata["source_sha256"], sha256(&source).unwrap());
    let original = File::read(&fixture("weights/vit_zip.pth")).unwrap().tensors;
    assert!(tensors.keys().eq(original.keys()));
    for (name, tensor) in &tensors {
        assert_eq!(tensor.dtype(), DType::F16);
        assert_eq!(values(tensor), values(&original[name]), "{name}");
    }
}

#[test]
fn a_missing_and_a_broken_file_are_reported_once_with_the_cure() {
    let failure = rescatter(&["weights", "inspect", "no/such.pth"]).failure().code(1);
    assert!(String::from_utf8_lossy(&failure.get_output().stderr).contains("no/such.pth"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pth");
    std::fs::write(&path, &std::fs::read(fixture("weights/vit_zip.pth")).unwrap()[..5000]).unwrap();
    let failure = rescatter(&["weights", "inspect", path.to_str().unwrap()]).failure().code(1);
    let text = String::from_utf8_lossy(&failure.get_output().stderr).into_owned();
    assert!(
        text.contains("cut.pth") && text.contains("hint: the file may be incomplete"),
        "{text}"
    );
}

#[test]
fn the_list_names_files_and_places() {
    let output = rescatter(&["weights", "list"]).success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(text.contains("ViT-B_16.npz") && text.contains("facebookresearch/dinov2"), "{text}");
}

/// The folder of a run that trained the linear head on the tiny fixture, as the engine leaves it.
fn finished_run(folder: &Path, weights: &Path) -> (Config, TaskModel) {
    let text = format!(
        "
task: segmentation
backbone: {{ embed_dim: 8, depth: 2, num_heads: 2, mlp_ratio: 2.0, patch_size: 4, pos_embed_grid: [3, 3], weights: {} }}
dispatch: {{ variant: mlp, inference: {{ calibrated: 0.5 }} }}
tuning: {{ adapter: {{ bottleneck: 4 }} }}
head: {{ linear: {{}} }}
data:
  train: {{ ade20k: {{ images: none, labels: none, classes: [a, b, c] }} }}
  val: {{ ade20k: {{ images: none, labels: none, classes: [a, b, c] }} }}
train: {{ iterations: 7, batch_size: 1 }}
",
        weights.display()
    );
    let config: Config = load::parse(&text, Path::new("config.yaml"), &[]).unwrap();
    let model = TaskModel::new(&config, 3, &Device::Cpu).unwrap();
    for (name, param) in model.params().all() {
        if name.contains("adaptmlp.") {
            let values = filling(&name, param.var.elem_count());
            let values = Tensor::from_vec(values, param.var.dims(), &Device::Cpu).unwrap();
            model.params().set(&name, &values).unwrap();
        }
    }
    let meta = Meta {
        format: 1,
        samples: None,
        step: 7,
        iterations: 7,
        seed: 0,
        schedule: config.schedule.clone(),
        thresholds: vec![Thresholds { share: 0.5, values: vec![0.25, -0.5] }],
        best: None,
        evaluated: Some(7),
        backbone: BackboneFile::of(&config.backbone, model.params()).unwrap(),
        classes: vec!["a".into(), "b".into(), "c".into()],
        earlier: Vec::new(),
        seconds: 1.0,
        config: load::to_yaml(&config).unwrap(),
    };
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("config.yaml"), &meta.config).unwrap();
    engine::save(
        &folder.join("best.safetensors"),
        model.params(),
        checkpoint::Tensors::new(),
        &meta,
    )
    .unwrap();
    (config, model)
}

#[test]
fn an_exported_run_needs_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("vit.pth");
    std::fs::copy(fixture("weights/vit_zip.pth"), &weights).unwrap();
    let run = folder.path().join("run");
    let (_, model) = finished_run(&run, &weights);
    let exported = folder.path().join("model.safetensors");
    rescatter(&[
        "weights",
        "export",
        run.to_str().unwrap(),
        "--output",
        exported.to_str().unwrap(),
    ])
    .success();
    std::fs::remove_file(&weights).unwrap();

    let trained = Trained::open(&exported, Which::Best, &[]).unwrap();
    assert_eq!((trained.step, trained.classes.len()), (7, 3));
    assert_eq!(trained.model.backbone().thresholds(), Some(vec![0.25, -0.5]));
    assert_eq!(trained.config.backbone.weights, None);
    for (name, param) in model.params().all() {
        assert_eq!(values(param.var.as_tensor()), loaded(trained.model.params(), &name), "{name}");
    }
}

/// The head of `head` (YAML) for `classes` classes on a ViT of `dim`, by the names of its parameters.
fn detector(head: &str, dim: usize, classes: usize) -> Shapes {
    let config: MaskRcnnConfig = serde_yaml::from_str(head).unwrap();
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    let spec = FeatureSpec { channels: dim, stride_px: 16.0 };
    MaskRcnn::new(&config, &spec, classes, &store.root()).unwrap();
    store.all().into_iter().map(|(name, param)| (name, param.var.dims().to_vec())).collect()
}

#[test]
fn the_published_detectors_match_the_model_by_name() {
    let heads =
        |list: Shapes| without(list, &["backbone.pos", "backbone.patch", "backbone.blocks"]);
    let (plain, ignored) = renamed("detectron2_mask_rcnn_vitdet_b", NameMap::Detectron2);
    assert_eq!((heads(plain.clone()), ignored), (detector("{}", 768, 80), vec![]));
    assert!(plain.contains_key("backbone.blocks.11.mlp.fc2.bias"));

    let cascade = renamed("detectron2_cascade_mask_rcnn_vitdet_b", NameMap::Detectron2);
    assert_eq!(cascade.1, Vec::<String>::new());
    assert_eq!(heads(cascade.0), detector("cascade: {}", 768, 80));

    // torchvision counts the background among its 91 classes; its own backbone belongs to nothing here.
    let (heads, ignored) = renamed("torchvision_maskrcnn_resnet50_fpn", NameMap::Torchvision);
    let two_layers = "{ rpn: { convs: 1 }, box_head: { convs: 0, fcs: 2, norm: none }, mask_head: { norm: none } }";
    assert_eq!(heads, without(detector(two_layers, 256, 90), &["backbone.simfp_"]));
    assert_eq!(ignored, ["backbone.body.conv1.weight"]);
}
