//! `rescatter score coco`: pycocotools' numbers, TIDE's breakdown, and what is said of broken files.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{fixture, rescatter, text};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn run(gt: &Path, dt: &Path, more: &[&str]) -> std::process::Output {
    rescatter()
        .args(["score", "coco", "--gt", text(gt), "--dt", text(dt)])
        .args(more)
        .output()
        .unwrap()
}

fn scores(gt: &Path, dt: &Path, kind: &str) -> Value {
    let output = run(gt, dt, &["--iou-type", kind, "--json", "--breakdown"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn near(found: &Value, expected: &Value, tolerance: f64, what: &str) {
    let (a, b) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((a - b).abs() <= tolerance, "{what}: {a}, expected {b}");
}

#[test]
fn the_twelve_numbers_and_every_categorys_are_pycocotools() {
    for number in 0..3 {
        let case = fixture(&format!("coco_eval/case{number}"));
        let expected = read(&case.join("expected.json"));
        for kind in ["bbox", "segm"] {
            let found = scores(&case.join("gt.json"), &case.join(format!("dt_{kind}.json")), kind);
            for i in 0..12 {
                let what = format!("case {number}, {kind}, number {i}");
                near(&found["stats"][i], &expected[kind]["stats"][i], 1e-9, &what);
            }
            for (key, ours) in [("per_category_ap", "AP"), ("per_category_ap50", "AP50")] {
                let categories = expected[kind][key].as_object().unwrap();
                assert_eq!(found["per_category"].as_object().unwrap().len(), categories.len());
                for (id, ap) in categories {
                    let what = format!("case {number}, {kind}, category {id}, {ours}");
                    near(&found["per_category"][id][ours], ap, 1e-9, &what);
                }
            }
        }
    }
}

#[test]
fn the_breakdown_is_tides() {
    let case = fixture("tide");
    let expected = read(&case.join("expected.json"));
    let names = [
        ("classification", "Cls"),
        ("localisation", "Loc"),
        ("both", "Both"),
        ("duplicate", "Dupe"),
        ("background", "Bkg"),
        ("missed", "Miss"),
    ];
    for kind in ["bbox", "segm"] {
        let dt = case.join(format!("dt_{kind}.json"));
        let found = &scores(&case.join("gt.json"), &dt, kind)["breakdown"];
        let expected = &expected[kind];
        near(&found["ap50"], &expected["ap50"], 1e-9, "ap50");
        for (share, (name, short)) in found["errors"].as_array().unwrap().iter().zip(names) {
            assert_eq!(share["kind"], name);
            assert_eq!(share["count"], expected["counts"][short], "{name}");
            near(&share["delta_ap"], &expected["delta_ap"][short], 1e-9, name);
        }
        for (ours, theirs) in [("false_positives", "FalsePos"), ("false_negatives", "FalseNeg")] {
            near(&found[ours], &expected["delta_ap"][theirs], 1e-9, ours);
        }
    }
}

#[test]
fn people_get_the_table_that_they_know() {
    let case = fixture("coco_eval/case0");
    let output = run(
        &case.join("gt.json"),
        &case.join("dt_bbox.json"),
        &["--iou-type", "bbox", "--breakdown"],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let first = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.214";
    assert!(text.starts_with(first), "{text}");
    for part in ["maxDets=  1 ] = 0.263", "class15", "duplicate"] {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

/// One image of 8 × 6 with two objects of category 4 and a third of category 90; all ids are odd.
fn tiny() -> (Value, Value) {
    let huge = 9_007_199_254_740_993u64;
    let object = |id: u64, category: u64, bbox: [f64; 4]| {
        let [x, y, w, h] = bbox;
        let polygon = [x, y, x + w, y, x + w, y + h, x, y + h];
        json!({ "id": id, "image_id": huge, "category_id": category, "bbox": bbox, "iscrowd": 0,
                "area": w * h, "segmentation": [polygon] })
    };
    let boxes = [[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]];
    let gt = json!({
        "images": [{ "id": huge, "file_name": "a.jpg", "width": 8, "height": 6 }],
        "categories": [{ "id": 90, "name": "z" }, { "id": 4, "name": "d" }],
        "annotations": [object(3, 4, boxes[0]), object(4, 4, boxes[1]), object(5, 90, boxes[2])],
    });
    let found = |category: u64, bbox: [f64; 4], score: f64| json!({ "image_id": huge, "category_id": category, "bbox": bbox, "score": score });
    let dt = json!([found(4, boxes[0], 0.9), found(4, boxes[1], 0.8), found(90, boxes[2], 0.7)]);
    (gt, dt)
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn ids_keep_all_their_digits_and_boxes_may_stand_for_masks() {
    let folder = tempfile::tempdir().unwrap();
    let (gt, dt) = tiny();
    let gt = write(folder.path(), "gt.json", gt.to_string());
    let dt = write(folder.path(), "dt.json", dt.to_string());
    for kind in ["bbox", "segm"] {
        let found = scores(&gt, &dt, kind);
        near(&found["stats"][0], &json!(1.0), 1e-12, "AP");
        near(&found["per_category"]["90"]["AP"], &json!(1.0), 1e-12, "category 90");
        assert_eq!(found["per_category"]["4"]["name"], "d");
    }
    let none = write(folder.path(), "none.json", "[]");
    assert_eq!(scores(&gt, &none, "bbox")["stats"][0], 0.0);
}

/// What a failed `score coco` says: one error, exit code 1, nothing on stdout.
fn complaint(gt: &str, dt: &str, kind: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (gt, dt) = (write(folder.path(), "gt.json", gt), write(folder.path(), "dt.json", dt));
    let output = run(&gt, &dt, &["--iou-type", kind, "--json"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_broken_results_file_is_named_with_the_record() {
    let (gt, dt) = tiny();
    let gt = gt.to_string();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut dt = dt.clone();
        change(&mut dt[1]);
        dt.to_string()
    };
    let mask =
        |counts: Value| with(&|d| d["segmentation"] = json!({ "size": [6, 8], "counts": counts }));
    let cases = [
        (with(&|d| d["image_id"] = json!(12)), "bbox", vec!["image id 12", "no such image"]),
        (with(&|d| d["category_id"] = json!(5)), "bbox", vec!["category id 5", "no such category"]),
        (with(&|d| d["bbox"][2] = json!(-1)), "bbox", vec!["detection 1", "-1"]),
        (
            with(&|d| d["bbox"] = json!([1, 2, 3])),
            "bbox",
            vec!["length 3", "image_id 9007199254740993"],
        ),
        (with(&|d| d["bbox"] = Value::Null), "bbox", vec!["detection 1", "neither"]),
        (
            dt.to_string().replace("0.8", "NaN"),
            "bbox",
            vec!["NaN is not a number", "category_id 4"],
        ),
        (dt.to_string().replace("0.8", "-Infinity"), "bbox", vec!["Infinity"]),
        (with(&|d| d["score"] = json!("high")), "bbox", vec!["expected f64", "category_id 4"]),
        (mask(json!([3, 4])), "segm", vec!["detection 1", "add up to 7"]),
        (mask(json!("5")), "segm", vec!["detection 1", "add up to 5"]),
        (mask(json!("5 %")), "segm", vec!["detection 1", "' '"]),
        (mask(json!([-3, 51])), "segm", vec!["-3", "category_id 4"]),
        (
            with(&|d| d["segmentation"] = json!({ "size": [8, 6], "counts": [48] })),
            "segm",
            vec!["detection 1", "6×8", "8×6"],
        ),
        (
            "{\"annotations\": []}".into(),
            "bbox",
            vec!["dt.json", "sequence", "are a list of objects"],
        ),
        ("[{\"image_id\": 1".into(), "bbox", vec!["dt.json", "EOF"]),
        ("\u{0}\u{1}".into(), "bbox", vec!["dt.json"]),
    ];
    for (dt, kind, parts) in cases {
        let message = complaint(&gt, &dt, kind);
        for part in parts.iter().chain(&["dt.json"]) {
            assert!(message.contains(part), "`{part}` is missing in: {message}");
        }
    }
}

#[test]
fn a_broken_annotation_file_is_named_with_the_record() {
    let (gt, dt) = tiny();
    let dt = dt.to_string();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut gt = gt.clone();
        change(&mut gt);
        gt.to_string()
    };
    let object = |change: &dyn Fn(&mut Value)| with(&|gt| change(&mut gt["annotations"][1]));
    let cases = [
        ("[]".to_owned(), "bbox", vec!["gt.json", "`categories`"]),
        ("{\"licenses\": []}".into(), "bbox", vec!["missing field `images`"]),
        (with(&|gt| gt["images"] = json!([])), "bbox", vec!["`images` is empty"]),
        (object(&|a| a["id"] = json!(3)), "bbox", vec!["annotation id 3 occurs again"]),
        (object(&|a| a["image_id"] = json!(7)), "bbox", vec!["annotation id 4", "image id 7"]),
        (
            object(&|a| a["category_id"] = json!(7)),
            "bbox",
            vec!["annotation id 4", "category id 7"],
        ),
        (object(&|a| a["bbox"] = json!([0, 0, -1, 2])), "bbox", vec!["annotation id 4", "-1"]),
        (
            object(&|a| a["segmentation"] = json!([[1, 2, 3]])),
            "segm",
            vec!["annotation id 4", "3 values"],
        ),
        (
            object(&|a| a["segmentation"] = json!({ "size": [6, 8], "counts": [1, 2] })),
            "segm",
            vec!["annotation id 4", "add up to 3"],
        ),
        (
            object(&|a| drop(a.as_object_mut().unwrap().remove("segmentation"))),
            "segm",
            vec!["annotation id 4"],
        ),
        (
            with(&|gt| gt["categories"][0]["id"] = json!(4)),
            "bbox",
            vec!["category id 4 occurs again"],
        ),
        (gt.to_string().replace("\"area\":16.0", "\"area\":NaN"), "bbox", vec!["NaN", "id 3"]),
    ];
    for (gt, kind, parts) in cases {
        let message = complaint(&gt, &dt, kind);
        for part in parts.iter().chain(&["gt.json"]) {
            assert!(message.contains(part), "`{part}` is missing in: {message}");
        }
    }
}
