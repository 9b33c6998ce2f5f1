//! What the binary says when something is wrong: one clear message, exit code 1, and nothing half written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use std::path::Path;
use std::process::Command;

use image::{GrayImage, Luma};
use rescatter::config::load;
use rescatter_heads::{Config, HeadConfig};
use sandbox::{Sandbox, failure};

const TRAIN: &str = "train segment.yaml --run run train.iterations=4";

/// Checks that the message has all of `parts`.
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let sandbox = Sandbox::new();
    for args in ["train", "train segment.yaml", "trian", "train segment.yaml --run run --wrong"] {
        assert_eq!(sandbox.command(args).output().unwrap().status.code(), Some(2), "{args}");
    }
    let help = sandbox.succeeds("train --help");
    says(&String::from_utf8_lossy(&help.stdout), &["--run <DIR>", "--resume", "--threads"]);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("segment.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("cat_max_ratio", "cat_max_ration")).unwrap();
    says(
        &sandbox.fails(TRAIN),
        &[
            "segment.yaml: line 11, column ",
            "unknown key `cat_max_ration`",
            "nearest known key is `cat_max_ratio`",
        ],
    );
    std::fs::write(&path, text).unwrap();
    says(
        &sandbox.fails("train segment.yaml --run run train.iteration=4"),
        &["in the override `train.iteration=4`: unknown key `iteration`", "is `iterations`"],
    );
    assert!(!sandbox.path("run").exists());
}

#[test]
fn a_device_that_cannot_do_the_arithmetic_is_refused_before_anything_is_written() {
    let sandbox = Sandbox::new();
    for precision in ["bf16", "f16"] {
        let name = format!("train.precision={precision}");
        let message = sandbox.fails(&format!("train segment.yaml --run run device=cpu {name}"));
        let fault = format!("`train.precision: {precision}` needs a GPU");
        says(&message, &[&fault, "take `train.precision: f32`"]);
    }
    assert!(!sandbox.path("run").exists());
}

#[test]
fn every_config_is_read_and_reads_back_identically() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for path in entries.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")) {
        let config: Config = load::load(&path, &[]).unwrap();
        let text = load::to_yaml(&config).unwrap();
        assert_eq!(
            load::parse::<HeadConfig>(&text, &path, &[]).unwrap(),
            config,
            "{}",
            path.display()
        );
        count += 1;
    }
    assert!(count >= 6, "only {count} configs were found");
}

#[test]
fn what_is_missing_is_named() {
    let sandbox = Sandbox::new();
    says(&sandbox.fails("train nowhere.yaml --run run"), &["cannot read `nowhere.yaml`"]);
    for key in ["data.train.ade20k.images", "data.val.ade20k.labels"] {
        says(&sandbox.fails(&format!("{TRAIN} {key}=data/nowhere")), &["data/nowhere"]);
    }
    says(&sandbox.fails(&format!("{TRAIN} backbone.weights=w.safetensors")), &["w.safetensors"]);
    std::fs::remove_file(sandbox.path("data/labels/train/5.png")).unwrap();
    says(&sandbox.fails(TRAIN), &["5.png"]);
    assert!(!sandbox.path("run").exists());
}

#[test]
fn a_broken_sample_is_named_and_leaves_no_checkpoint() {
    let sandbox = Sandbox::new();
    let (image, label) = ("data/images/train/3.jpg", "data/labels/train/3.png");
    let good = std::fs::read(sandbox.path(image)).unwrap();
    std::fs::write(sandbox.path(image), &good[..good.len() / 2]).unwrap();
    says(&sandbox.fails(TRAIN), &["3.jpg"]);
    std::fs::write(sandbox.path(image), &good).unwrap();

    GrayImage::from_pixel(32, 32, Luma([7])).save(sandbox.path(label)).unwrap();
    says(&sandbox.fails(TRAIN), &["3.png", "7"]);
    GrayImage::from_pixel(32, 30, Luma([1])).save(sandbox.path(label)).unwrap();
    says(&sandbox.fails(TRAIN), &["3.png", "30"]);
    assert!(!sandbox.names("run").iter().any(|name| name.contains("safetensors")));

    GrayImage::from_pixel(32, 32, Luma([1])).save(sandbox.path(label)).unwrap();
    sandbox.succeeds(TRAIN);
    assert!(sandbox.path("run/results.json").exists());
}

#[test]
fn a_run_is_not_overwritten() {
    let sandbox = Sandbox::new();
    sandbox.succeeds(TRAIN);
    says(&sandbox.fails(TRAIN), &["run: already holds a run", "--resume"]);
    says(&sandbox.fails(&format!("{TRAIN} --resume seed=5")), &["`seed` was 0 and is now 5"]);
    sandbox.succeeds(&format!("{TRAIN} --resume"));
    std::fs::create_dir(sandbox.path("thesis")).unwrap();
    std::fs::write(sandbox.path("thesis/chapter.txt"), "").unwrap();
    says(&sandbox.fails("train segment.yaml --run thesis"), &["thesis: is neither empty"]);
}

#[test]
fn a_config_in_the_folder_of_the_run_is_not_overwritten() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("run")).unwrap();
    std::fs::copy(sandbox.path("segment.yaml"), sandbox.path("run/config.yaml")).unwrap();
    let before = std::fs::read(sandbox.path("run/config.yaml")).unwrap();
    says(
        &sandbox.fails("train run/config.yaml --run run"),
        &["run/config.yaml: was not written by a run", "--run"],
    );
    assert_eq!(std::fs::read(sandbox.path("run/config.yaml")).unwrap(), before);
}

#[test]
fn parts_of_a_validation_set_may_have_the_transforms() {
    let sandbox = Sandbox::new();
    let part = |transforms: &str| {
        let set = r#"{"images":"data/images/val","labels":"data/labels/val","classes":["ground","square"]}"#;
        format!(r#"{{"ade20k":{set},"transforms":{transforms}}}"#)
    };
    let plain = part(r#"[{"normalize":{}}]"#);
    sandbox.succeeds(&format!(r#"{TRAIN} data.val={{"concat":[{plain},{plain}]}}"#));
    sandbox.succeeds("predict run data/images/val/8.jpg --output out");
    // Calibration has no transforms to take; it is found before the first step.
    let sized = part(r#"[{"resize":{"size":[24,24]}},{"normalize":{}}]"#);
    let other = TRAIN.replace("--run run", "--run other");
    let message = sandbox.fails(&format!(r#"{other} data.val={{"concat":[{plain},{sized}]}}"#));
    says(&message, &["`data.val.concat.1.transforms` differ", "hint: ", "`data.val.transforms`"]);
    assert!(!sandbox.path("other").exists());
}

#[test]
fn pixels_that_count_nowhere_have_one_label_in_both_splits() {
    let sandbox = Sandbox::new();
    for command in [TRAIN, "eval segment.yaml"] {
        says(
            &sandbox.fails(&format!("{command} data.val.ade20k.ignore_index=254")),
            &["`data.train.ade20k.ignore_index` is 255", "`data.val.ade20k.ignore_index` is 254"],
        );
    }
    assert!(!sandbox.path("run").exists());
}

#[test]
fn a_config_is_evaluated_with_a_warning_unless_its_run_is_meant() {
    let sandbox = Sandbox::new();
    let warned = sandbox.succeeds("eval segment.yaml").stderr;
    says(&String::from_utf8_lossy(&warned), &["segment.yaml is a config", "never trained"]);
    std::fs::write(sandbox.path("best.safetensors"), "").unwrap();
    for command in ["eval segment.yaml", "predict segment.yaml data/images/val --output out"] {
        says(&sandbox.fails(command), &["lie beside it", "hint: name the run's folder: `.`"]);
    }
}

#[test]
fn results_that_could_not_be_written_are_refused_before_the_work() {
    let sandbox = Sandbox::new();
    says(
        &sandbox.fails("eval segment.yaml --detections no/found.json"),
        &["no/found.json: cannot be written: its folder does not exist"],
    );
    // `data/labels` would be overwritten.
    for (input, output) in
        [("data/images/val", "data"), ("data/images/val/8.jpg", "data/images/val"), ("data", ".")]
    {
        says(
            &sandbox.fails(&format!("predict none {input} --output {output}")),
            &[&format!("`--output {output}` is a folder in which the input `{input}` lies")],
        );
    }
}

#[cfg(unix)]
#[test]
fn output_that_nobody_reads_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Sandbox::new().command("weights list").stdout(writer).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked") && output.status.code() != Some(101), "{text}");
}

#[test]
fn the_checkpoint_of_another_model_is_refused_at_once() {
    let sandbox = Sandbox::new();
    sandbox.succeeds(TRAIN);
    sandbox.succeeds(&format!(
        "{} tuning.adapter.bottleneck=5",
        TRAIN.replace("--run run", "--run other")
    ));
    sandbox.succeeds("train classify.yaml --run classified train.iterations=1");
    let before = std::fs::read(sandbox.path("other/last.safetensors")).unwrap();
    std::fs::copy(sandbox.path("other/last.safetensors"), sandbox.path("run/last.safetensors"))
        .unwrap();
    says(
        &sandbox.fails(&format!("{TRAIN} --resume")),
        &[
            "run/last.safetensors: is the checkpoint of another model",
            "of another shape",
            "in the file",
            "hint: ",
        ],
    );
    assert_eq!(std::fs::read(sandbox.path("run/last.safetensors")).unwrap(), before);
    std::fs::copy(
        sandbox.path("classified/last.safetensors"),
        sandbox.path("run/last.safetensors"),
    )
    .unwrap();
    says(
        &sandbox.fails(&format!("{TRAIN} --resume")),
        &[
            "is the checkpoint of another model",
            "missing (`decode_head.",
            "not in the model (`head.bias`",
        ],
    );
    std::fs::write(sandbox.path("run/last.safetensors"), "not a checkpoint").unwrap();
    says(&sandbox.fails(&format!("{TRAIN} --resume")), &["run/last.safetensors"]);
}

#[test]
fn another_backbone_than_the_one_trained_on_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.succeeds("train classify.yaml --run pre tuning.backbone=full tuning.adapter=null dispatch.variant=none");
    std::fs::copy(sandbox.path("pre/best.safetensors"), sandbox.path("vit.safetensors")).unwrap();
    let train = format!("{TRAIN} backbone.weights=vit.safetensors");
    sandbox.succeeds(&train);
    sandbox.succeeds("train classify.yaml --run pre2 tuning.backbone=full tuning.adapter=null dispatch.variant=none seed=1");
    std::fs::copy(sandbox.path("pre2/best.safetensors"), sandbox.path("vit.safetensors")).unwrap();
    says(
        &sandbox.fails(&format!("{train} --resume")),
        &[
            "vit.safetensors: is not the backbone that run/last.safetensors was trained on",
            "SHA-256",
            "hint: ",
        ],
    );
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_the_images() {
    let sandbox = Sandbox::new();
    let message = sandbox.fails(
        "train segment.yaml --run run optimizer.sgd.lr=1e30 train.clip_norm=null train.checkpoint_every=1",
    );
    says(
        &message,
        &["training stopped at step ", ".jpg", "the last checkpoint stays as it was", "hint: "],
    );
    let intact = sandbox.tensors("run/last.safetensors");
    assert!(intact.contains_key("decode_head.conv_seg.weight"));
    assert!(!sandbox.path("run/results.json").exists());
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_the_run_and_leaves_nothing_half_written() {
    let sandbox = Sandbox::new();
    // No file may grow beyond 16 blocks of 512 bytes: enough for the config and the log, too small for a checkpoint.
    let limited = |args: &str| {
        let script = format!("ulimit -f 16; exec {} {args}", env!("CARGO_BIN_EXE_rescatter"));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(sandbox.path("")).env("RESCATTER_LOG", "warn");
        failure(&command.output().unwrap())
    };
    says(&limited(TRAIN), &["run/last.safetensors: cannot be written", "hint: free some space"]);
    assert!(
        !sandbox.names("run").iter().any(|name| name.contains("safetensors")),
        "{:?}",
        sandbox.names("run")
    );
    // With a checkpoint from better times: it stays, and serves once there is room.
    sandbox.succeeds(&format!("{TRAIN} train.iterations=6"));
    let before = sandbox.tensors("run/last.safetensors");
    sandbox.succeeds(&format!("{TRAIN} train.iterations=6 --resume"));
    let text = limited(&format!("{TRAIN} train.iterations=6 --resume"));
    says(&text, &["cannot be written"]);
    assert_eq!(sandbox.tensors("run/last.safetensors"), before);
    assert!(
        !sandbox.names("run").iter().any(|name| name.starts_with('.')),
        "{:?}",
        sandbox.names("run")
    );
}

#[test]
fn bench_times_passes_blocks_and_training_steps() {
    let sandbox = Sandbox::new();
    let run = |args: &str| -> serde_json::Value {
        serde_json::from_slice(&sandbox.succeeds(args).stdout).unwrap()
    };
    let size = "--size 28x28 --repeat 2 --json";
    let passes = run(&format!("bench segment.yaml {size} --profile --kept 0.5"));
    let positive = |value: &serde_json::Value| value.as_f64().unwrap() > 0.0;
    for kind in ["dense", "skipping"] {
        assert!(positive(&passes["backbone"][kind]["median_ms"]), "{passes}");
        let whole = &passes["whole"][kind];
        assert!(positive(&whole["images_per_second"]), "{passes}");
        // Twice the multiply-adds of an image, over the time of one.
        let rate =
            2e3 * whole["gmacs_executed"].as_f64().unwrap() / whole["median_ms"].as_f64().unwrap();
        assert!((whole["gflops"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9, "{passes}");
        assert!(
            positive(&passes["product_gflops"]) && positive(&whole["processor_ms"]),
            "{passes}"
        );
    }
    let depth = passes["kept_per_layer"].as_array().unwrap().len();
    assert_eq!(passes["blocks"].as_array().unwrap().len(), depth, "{passes}");
    assert!(passes["blocks"].as_array().unwrap().iter().all(|b| positive(&b["dense"]["min_ms"])));
    // The plain definitions decide as the kernels do.
    let plain = run(&format!("bench segment.yaml {size} --kept 0.5 --composed"));
    assert!(positive(&plain["whole"]["dense"]["median_ms"]), "{plain}");
    assert_eq!(plain["kept_per_layer"], passes["kept_per_layer"]);
    let steps = run(&format!("bench segment.yaml {size} --train --batch 2"));
    for key in ["median_ms", "processor_ms", "kept"] {
        assert!(positive(&steps[key]), "{steps}");
    }
    let dense = run(&format!("bench segment.yaml {size} --train dispatch.variant=none"));
    assert!(dense["kept"].is_null(), "{dense}");
    let alone = run(&format!("bench segment.yaml {size} --profile dispatch.variant=none"));
    assert!(positive(&alone["backbone"]["dense"]["median_ms"]), "{alone}");
    for part in [&alone["backbone"], &alone["whole"], &alone["blocks"][0]] {
        assert!(part["skipping"].is_null() && part["dense"].is_object(), "{alone}");
    }
    assert!(alone["kept"].is_null(), "{alone}");
    let no_train = sandbox.command("bench segment.yaml --train --profile").output().unwrap();
    assert_eq!(no_train.status.code(), Some(2));
}
