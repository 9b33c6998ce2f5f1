//! The pretrained file at hand, and `rescatter weights`.

use super::*;

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

#[cfg(unix)]
#[test]
fn a_file_whose_name_is_no_utf8_is_inspected() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.npz"));
    std::fs::copy(fixture("weights/vit.npz"), &path).unwrap();
    let mut command = assert_cmd::Command::cargo_bin("rescatter").unwrap();
    command.args(["weights", "inspect", "--json"]).arg(&path).assert().success();
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
        loss_scale: None,
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

#[test]
fn thresholds_of_earlier_weights_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let (_, model) = finished_run(&run, &fixture("weights/vit_zip.pth"));
    let mut meta = engine::Checkpoint::read(&run.join("best.safetensors")).unwrap().meta;
    // Training went on for two steps after the evaluation.
    meta.evaluated = Some(5);
    let last = run.join("last.safetensors");
    engine::save(&last, model.params(), checkpoint::Tensors::new(), &meta).unwrap();
    let thresholds = |which| Trained::open(&run, which, &[]).unwrap().model.backbone().thresholds();
    assert_eq!((thresholds(Which::Best), thresholds(Which::Last)), (Some(vec![0.25, -0.5]), None));
}
