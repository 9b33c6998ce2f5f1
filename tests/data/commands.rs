//! `score` and `data` through the binary.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{fixture, rescatter, text};

/// Labels and predictions of a fixture in two folders, under equal names.
fn folders(case: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["label", "pred"] {
        std::fs::create_dir(folder.path().join(kind)).unwrap();
    }
    for entry in std::fs::read_dir(case).unwrap() {
        let path = entry.unwrap().path();
        let Some((number, kind)) = path.file_stem().unwrap().to_str().unwrap().split_once('_')
        else {
            continue;
        };
        std::fs::copy(&path, folder.path().join(kind).join(format!("{number}.png"))).unwrap();
    }
    folder
}

/// The numbers and nulls of a result in one line.
fn values(json: &Value, key: &str) -> Vec<Option<f64>> {
    match &json[key] {
        Value::Array(items) => items.iter().map(Value::as_f64).collect(),
        Value::Null if json.get(key).is_none() => panic!("no key {key} in {json}"),
        one => vec![one.as_f64()],
    }
}

fn score(folder: &Path, more: &[&str]) -> assert_cmd::assert::Assert {
    let (labels, predictions) = (folder.join("label"), folder.join("pred"));
    rescatter()
        .args(["score", "miou", "--labels", text(&labels), "--predictions", text(&predictions)])
        .args(more)
        .assert()
}

fn stderr(assert: assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn stdout(assert: assert_cmd::assert::Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

#[test]
fn miou_is_the_references() {
    for number in 0..3 {
        let case = fixture(&format!("miou/case{number}"));
        let expected: Value =
            serde_json::from_str(&std::fs::read_to_string(case.join("expected.json")).unwrap())
                .unwrap();
        let (classes, ignore) =
            (expected["num_classes"].to_string(), expected["ignore_index"].to_string());
        let mut options = vec!["--num-classes", &classes, "--ignore-index", &ignore, "--json"];
        if expected["reduce_zero_label"] == true {
            options.push("--reduce-zero-label");
        }
        let found: Value =
            serde_json::from_str(&stdout(score(folders(&case).path(), &options).success()))
                .unwrap();
        for key in ["mIoU", "aAcc", "mAcc", "IoU", "Acc"] {
            let (found, expected) = (values(&found, key), values(&expected, key));
            let near = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-12,
                (a, b) => a == b,
            };
            assert!(
                found.len() == expected.len()
                    && found.iter().zip(&expected).all(|(a, b)| near(a, b)),
                "{key}: {found:?} {expected:?}"
            );
        }
    }
}

#[test]
fn predictions_that_do_not_fit_are_refused_with_their_name() {
    let folder = folders(&fixture("miou/case0"));
    let path = |name: &str| folder.path().join(name);
    let complaint = || stderr(score(folder.path(), &["--num-classes", "7"]).code(1));
    let prediction = std::fs::read(path("pred/1.png")).unwrap();
    image::GrayImage::new(3, 3).save(path("pred/1.png")).unwrap();
    assert!(
        complaint().contains("pred/1.png: the prediction is 3×3 but the label is"),
        "{}",
        complaint()
    );
    image::GrayImage::from_pixel(3, 3, image::Luma([9])).save(path("pred/1.png")).unwrap();
    assert!(complaint().contains("predicted class 9"), "{}", complaint());
    std::fs::remove_file(path("pred/1.png")).unwrap();
    assert!(complaint().contains("no prediction for this label (1 in all)"), "{}", complaint());
    std::fs::write(path("pred/1.png"), prediction).unwrap();
    std::fs::copy(path("pred/1.png"), path("pred/17.png")).unwrap();
    assert!(complaint().contains("17.png: this prediction has no label"), "{}", complaint());
    let missing = stderr(
        rescatter()
            .args([
                "score",
                "miou",
                "--labels",
                "none",
                "--predictions",
                "none",
                "--num-classes",
                "2",
            ])
            .assert()
            .code(1),
    );
    assert!(missing.contains("none: no such folder"), "{missing}");
}

#[test]
fn numbers_of_classes_and_ignored_labels_that_cannot_be_are_refused() {
    let folder = folders(&fixture("miou/case1"));
    let complaint = |options: &[&str]| stderr(score(folder.path(), options).code(1));
    let many = complaint(&["--num-classes", "65536"]);
    assert!(many.contains("`--num-classes` is 65536") && many.contains("at most 65535"), "{many}");
    let reduced = ["--num-classes", "6", "--reduce-zero-label", "--ignore-index", "6"];
    let last = complaint(&reduced);
    assert!(last.contains("`ignore_index` 6 is also the label of class `5`"), "{last}");
    assert!(last.contains("choose a value from 7 to 65535"), "{last}");
}

/// The bytes of every file below a folder, by relative name.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(current) = open.pop() {
        for entry in std::fs::read_dir(current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((
                    path.strip_prefix(folder).unwrap().into(),
                    std::fs::read(&path).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}

fn make(kind: &str, folder: &Path, seed: &str) -> assert_cmd::assert::Assert {
    rescatter()
        .args(["data", "make", kind, "--output", text(folder), "--count", "30", "--seed", seed])
        .assert()
}

#[test]
fn the_same_seed_makes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    for kind in ["ade20k", "coco_stuff", "shapes"] {
        for (path, seed) in [(&a, "4"), (&b, "4"), (&c, "5")] {
            make(kind, path, seed).success();
        }
        assert!(contents(&a) == contents(&b), "{kind}");
        assert!(contents(&a) != contents(&c), "{kind}");
        let again = stderr(make(kind, &a, "4").code(1));
        assert!(again.contains("not empty"), "{again}");
        for path in [&a, &b, &c] {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

/// A made set and a config for it.
fn made(kind: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("set");
    make(kind, &root, "1").success();
    let root = text(&root);
    let reader = |split: usize| match kind {
        "shapes" => format!("image_folder: {{ root: {root}/{} }}", ["train", "val"][split]),
        "ade20k" => {
            let name = ["training", "validation"][split];
            format!(
                "ade20k: {{ images: {root}/images/{name}, labels: {root}/annotations/{name}, classes: {root}/classes.txt, reduce_zero_label: true }}"
            )
        }
        _ => {
            let name = ["train2017", "val2017"][split];
            format!(
                "coco_stuff: {{ images: {root}/images/{name}, labels: {root}/annotations/{name}, label_suffix: _labelTrainIds.png, classes: {root}/classes.txt }}"
            )
        }
    };
    let (task, head) = if kind == "shapes" {
        ("classification", "classifier: { pool: mean }")
    } else {
        ("segmentation", "linear: {}")
    };
    let text = format!(
        "task: {task}\nbackbone: {{ arch: vit_ti, patch_size: 8, pos_embed_grid: [8, 8] }}\nhead: {{ {head} }}\ndata:\n  \
         train:\n    {}\n    transforms: [{{ random_flip: {{}} }}, {{ normalize: {{}} }}]\n  \
         val:\n    {}\n    transforms: [{{ normalize: {{}} }}]\n\
         train: {{ iterations: 1, batch_size: 1 }}\n",
        reader(0),
        reader(1)
    );
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, text).unwrap();
    (folder, config)
}

#[test]
fn a_made_set_is_sound_and_holds_every_class() {
    for (kind, classes) in [("ade20k", 7), ("coco_stuff", 7), ("shapes", 6)] {
        let (_folder, config) = made(kind);
        let report =
            stdout(rescatter().args(["data", "check", text(&config), "--json"]).assert().success());
        let report: Value = serde_json::from_str(&report).unwrap();
        let train = &report["splits"][0];
        assert_eq!(
            (&report["ok"], &train["images"]),
            (&Value::Bool(true), &Value::from(24)),
            "{kind}"
        );
        let counts: Vec<u64> = train["classes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["count"].as_u64().unwrap())
            .collect();
        assert_eq!(counts.len(), classes, "{kind}");
        assert!(
            counts.iter().filter(|count| **count > 0).count() >= classes - 1,
            "{kind}: {counts:?}"
        );
    }
}

#[test]
fn the_check_reports_everything_that_is_wrong_at_once() {
    let (folder, config) = made("ade20k");
    let set = folder.path().join("set");
    let image = |n: usize| set.join(format!("images/training/ADE_train_{n:08}.jpg"));
    let label = |n: usize| set.join(format!("annotations/training/ADE_train_{n:08}.png"));
    let bytes = std::fs::read(image(1)).unwrap();
    std::fs::write(image(1), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::remove_file(label(2)).unwrap();
    image::GrayImage::new(5, 5).save(label(3)).unwrap();
    image::GrayImage::from_pixel(96, 96, image::Luma([200])).save(label(4)).unwrap();
    std::fs::write(image(6), b"").unwrap();
    let report = stdout(rescatter().args(["data", "check", text(&config)]).assert().code(1));
    for words in [
        "ADE_train_00000001.jpg: truncated JPEG",
        "ADE_train_00000002.png",
        "ADE_train_00000003.png: the label is 5×5",
        "ADE_train_00000004.png: label value 200 at row 0, column 0",
        "ADE_train_00000006.jpg: the file is empty",
    ] {
        assert!(report.contains(words), "{words} is not in\n{report}");
    }
    let gone = format!("data.val.ade20k.images={}/nowhere", text(&set));
    let report = stdout(rescatter().args(["data", "check", text(&config), &gone]).assert().code(1));
    assert!(report.contains("nowhere: no such folder"), "{report}");
}

#[test]
fn browsing_draws_sheets() {
    for (kind, split) in [("ade20k", "train"), ("ade20k", "val"), ("shapes", "train")] {
        let (folder, config) = made(kind);
        let output = folder.path().join("sheets");
        rescatter()
            .args([
                "data",
                "browse",
                text(&config),
                "--output",
                text(&output),
                "--split",
                split,
                "--count",
                "5",
            ])
            .assert()
            .success();
        let sheet = image::open(output.join("sheet_000.png")).unwrap().into_rgb8();
        let colours: std::collections::HashSet<_> = sheet.pixels().map(|p| p.0).collect();
        assert!(
            sheet.width() > 200 && colours.len() > 100,
            "{kind} {split}: {} colours",
            colours.len()
        );
    }
}
