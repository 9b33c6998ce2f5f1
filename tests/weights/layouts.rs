//! The names of every publisher.

use super::*;

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

/// ViTDet's tiny cousin: block 0 in windows of 2 × 2 patches, block 1 over the image.
fn windowed(rel_pos: Option<[usize; 2]>) -> BackboneConfig {
    let window =
        WindowConfig { size: 2, global_blocks: vec![1], padding: WindowPadding::default() };
    let rel_pos = rel_pos.map(|grid| RelPosConfig { grid });
    BackboneConfig { cls_token: false, window: Some(window), rel_pos, ..tiny() }
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
