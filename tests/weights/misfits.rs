//! Files of other models and other classes.

use super::*;

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
