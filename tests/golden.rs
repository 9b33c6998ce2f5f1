//! Every reference file in `tests/fixtures` agrees with this implementation, through `rescatter verify` itself; on the GPU that
//! `RESCATTER_TEST_DEVICE` names (`cuda:0`), else on the CPU.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use std::path::Path;

/// Verifies the files of the kinds whose names start with one of `prefixes`; there must be `count` of them.
fn verify(prefixes: &[&str], count: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.ends_with(".safetensors") && prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut files: Vec<_> = entries.filter(|path| wanted(path)).collect();
    files.sort();
    assert_eq!(files.len(), count, "reference files {prefixes:?} in {}", folder.display());
    let device = std::env::var("RESCATTER_TEST_DEVICE").unwrap_or("cpu".into());
    let output = assert_cmd::Command::cargo_bin("rescatter")
        .unwrap()
        .args(["verify", "--device", &device])
        .args(&files)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(table.lines().filter(|line| line.contains("): ok: ")).count(), count, "{table}");
}

#[test]
fn the_vit_and_its_dispatch_agree_with_the_reference() {
    verify(&["dyt_"], 24);
}

#[test]
fn token_merging_agrees_with_the_reference() {
    verify(&["tome_"], 2);
}

#[test]
fn windows_and_relative_positions_agree_with_the_reference() {
    verify(&["vitdet_"], 6);
}

#[test]
fn training_steps_agree_with_the_reference() {
    verify(&["train_"], 6);
}

#[test]
fn tuning_methods_agree_with_the_reference() {
    verify(&["rlrr", "memory_", "tuning_"], 14);
}

#[test]
fn dense_features_agree_with_the_reference() {
    verify(&["dense_"], 2);
}

#[test]
fn maps_agree_with_the_reference() {
    verify(&["resize_"], 21);
}

#[test]
fn optimizers_and_schedules_agree_with_the_reference() {
    verify(&["optim_"], 9);
}

#[test]
fn upernet_agrees_with_the_reference() {
    verify(&["uper_"], 3);
}

#[test]
fn the_simple_pyramid_agrees_with_the_reference() {
    verify(&["simple_fpn"], 2);
}

#[test]
fn boxes_agree_with_the_reference() {
    verify(&["nms_", "batched_nms_", "soft_nms_", "box_coder_", "anchors", "match_"], 16);
}

#[test]
fn the_temporal_head_agrees_with_the_reference() {
    verify(&["temporal"], 2);
}

#[test]
fn regions_agree_with_the_reference() {
    verify(&["roi_align_", "multilevel_roi_align_", "level_assignment", "paste_masks_"], 10);
}

#[test]
fn mask_rcnn_agrees_with_the_reference() {
    verify(&["mask_rcnn_", "conv_box_head", "norm_mask_head", "cascade_"], 10);
}
