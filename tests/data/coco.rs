//! Detection sets: what is read from COCO's files, what follows the image, and what is refused with which words.

use std::path::Path;

use image::{Rgb, RgbImage};
use rescatter::config::{CocoConfig, OnError, SplitConfig, TransformConfig};
use rescatter::data::{self, Dataset, Instances, Loader, LoaderOptions, Mode, Sample};
use rescatter::metrics::coco::{CocoAp, Detected, IouType};
use rescatter::rng::{Purpose, Rng};
use serde_json::{Value, json};

use crate::sets::normalize;
use crate::{rescatter, text};

/// Three images: 5 has a polygon, runs of both kinds and a crowd; 9 a portrait with a crowd alone; 12 nothing.
fn annotations() -> Value {
    let object = |id: u64, image: u64, category: u64, bbox: [f64; 4], crowd: u8, pixels: Value| {
        json!({ "id": id, "image_id": image, "category_id": category, "iscrowd": crowd,
                "area": bbox[2] * bbox[3], "bbox": bbox, "segmentation": pixels })
    };
    // Rows 2 and 3 of columns 1 and 2 of a picture of 6 rows and 10 columns.
    let runs = json!({ "size": [6, 10], "counts": [8, 2, 4, 2, 44] });
    json!({
        "info": { "year": 2017 },
        "images": [
            { "id": 5, "file_name": "a.png", "width": 10, "height": 6, "license": 3 },
            { "id": 9, "file_name": "deep/b.png", "width": 4, "height": 9 },
            { "id": 12, "file_name": "c.png", "width": 10, "height": 6 },
        ],
        "categories": [{ "id": 44, "name": "late" }, { "id": 3, "name": "early" }],
        "annotations": [
            object(1, 5, 44, [6.0, 1.0, 3.0, 4.0], 0, json!([[6.0, 1.0, 9.0, 1.0, 9.0, 5.0, 6.0, 5.0]])),
            object(2, 5, 3, [1.0, 2.0, 2.0, 2.0], 0, runs.clone()),
            object(3, 5, 3, [1.0, 2.0, 2.0, 2.0], 0, json!({ "size": [6, 10], "counts": "8240X1" })),
            object(4, 5, 3, [0.0, 0.0, 5.0, 6.0], 1, runs),
            object(7, 9, 3, [0.0, 0.0, 4.0, 4.0], 1, json!({ "size": [9, 4], "counts": [0, 4, 32] })),
        ],
    })
}

fn folder(annotations: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("images/deep")).unwrap();
    for image in annotations["images"].as_array().unwrap() {
        let side = |key: &str| image[key].as_u64().unwrap() as u32;
        let picture = RgbImage::from_pixel(side("width"), side("height"), Rgb([9; 3]));
        picture
            .save(folder.path().join("images").join(image["file_name"].as_str().unwrap()))
            .unwrap();
    }
    std::fs::write(folder.path().join("gt.json"), annotations.to_string()).unwrap();
    folder
}

fn config(folder: &Path) -> CocoConfig {
    CocoConfig {
        images: folder.join("images"),
        annotations: folder.join("gt.json"),
        first: None,
        filter_empty: false,
        on_error: OnError::Stop,
    }
}

fn split(config: CocoConfig, steps: &[TransformConfig]) -> SplitConfig {
    let transforms = [steps, &[normalize()]].concat();
    SplitConfig { coco: Some(config), transforms, ..Default::default() }
}

fn sample(
    set: &dyn Dataset<Target = Instances>,
    index: usize,
) -> rescatter::Result<Sample<Instances>> {
    set.get(index, &mut Rng::new(0).stream(Purpose::Augment, index as u64, 0))
}

fn refused<T>(result: rescatter::Result<T>) -> String {
    let error = result.err().expect("this should be refused");
    format!("{error}; {}", error.hint().unwrap_or_default())
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn objects_crowds_and_images_without_objects_are_read() {
    let folder = folder(&annotations());
    let set = data::detection(&split(config(folder.path()), &[])).unwrap();
    assert_eq!((set.len(), set.classes()), (3, &["early".to_owned(), "late".to_owned()][..]));
    assert_eq!([0, 1, 2].map(|i| set.is_portrait(i)), [false, true, false]);
    let first = sample(&*set, 0).unwrap();
    assert_eq!(first.image.dim(), (3, 6, 10));
    assert_eq!(
        first.target.boxes,
        [[6.0, 1.0, 9.0, 5.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    );
    assert_eq!(first.target.classes, [1, 0, 0]);
    assert_eq!(first.target.crowds, [[0.0, 0.0, 5.0, 6.0]]);
    let masks = &first.target.masks;
    assert_eq!((masks[0].origin, masks[0].bitmap.dim()), ((1, 6), (4, 3)));
    assert_eq!((masks[1].origin, masks[1].bitmap.sum()), ((2, 1), 4));
    assert_eq!(masks[1], masks[2], "runs as numbers and as a string");
    assert_eq!(sample(&*set, 1).unwrap().target.crowds.len(), 1);
    let nothing = Instances { size: (6, 10), ..Instances::default() };
    assert_eq!(sample(&*set, 2).unwrap().target, nothing);
    assert_eq!(sample(&*set, 1).unwrap().meta.name, "deep/b.png");
}

#[test]
fn training_may_leave_images_without_objects_out_but_evaluation_may_not() {
    let folder = folder(&annotations());
    let filtered = CocoConfig { filter_empty: true, ..config(folder.path()) };
    assert_eq!(data::detection(&split(filtered.clone(), &[])).unwrap().len(), 1);
    says(&refused(data::detection_for_evaluation(&split(filtered, &[]))), &["filter_empty"]);
    let all = split(config(folder.path()), &[]);
    assert_eq!(data::detection_for_evaluation(&all).unwrap().len(), 3);
    let flip = split(config(folder.path()), &[TransformConfig::RandomFlip { prob: 0.5 }]);
    says(&refused(data::detection_for_evaluation(&flip)), &["random_flip"]);
}

#[test]
fn boxes_and_masks_follow_resizing_and_mirroring() {
    let folder = folder(&annotations());
    let steps = [
        TransformConfig::ResizeShortestEdge { sizes: vec![12], max_size: 100 },
        TransformConfig::RandomFlip { prob: 1.0 },
    ];
    let set = data::detection(&split(config(folder.path()), &steps)).unwrap();
    let first = sample(&*set, 0).unwrap();
    assert_eq!(
        (first.meta.input, first.meta.original, first.meta.flipped),
        ((12, 20), (6, 10), true)
    );
    // x 6..9 doubles to 12..18 and is mirrored in 20 to 2..8.
    assert_eq!(first.target.boxes[0], [2.0, 2.0, 8.0, 10.0]);
    assert_eq!(
        (first.target.masks[0].origin, first.target.masks[0].bitmap.dim()),
        ((2, 2), (8, 6))
    );
    assert_eq!(first.target.boxes[1], [14.0, 4.0, 18.0, 8.0]);
    assert_eq!((first.target.masks[1].origin, first.target.masks[1].bitmap.sum()), ((4, 14), 16));
    assert_eq!(first.target.crowds, [[10.0, 0.0, 20.0, 12.0]]);
}

#[test]
fn large_scale_jitter_keeps_every_box_around_its_mask() {
    let folder = folder(&annotations());
    let steps = [
        TransformConfig::RandomFlip { prob: 0.5 },
        TransformConfig::Resize {
            size: Some([32, 32]),
            ratio_range: [0.5, 3.0],
            keep_ratio: true,
            min_side: None,
            multiple_of: None,
        },
        TransformConfig::RandomCrop { size: [32, 32], cat_max_ratio: 1.0 },
    ];
    let mut split = split(config(folder.path()), &steps);
    split.transforms.push(TransformConfig::Pad { size: [32, 32] });
    let set = data::detection(&split).unwrap();
    let mut seen = 0;
    for number in 0..60 {
        let sample = set.get(0, &mut Rng::new(1).stream(Purpose::Augment, number, 0)).unwrap();
        assert_eq!(sample.image.dim(), (3, 32, 32));
        let (height, width) = sample.meta.input;
        let target = &sample.target;
        assert_eq!(
            (target.boxes.len(), target.boxes.len()),
            (target.masks.len(), target.classes.len())
        );
        for ([x0, y0, x1, y1], mask) in target.boxes.iter().zip(&target.masks) {
            assert!(*x0 >= 0.0 && *y0 >= 0.0 && *x1 <= width as f32 && *y1 <= height as f32);
            let (mut rows, mut columns) = (Vec::new(), Vec::new());
            for ((y, x), _) in mask.bitmap.indexed_iter().filter(|(_, v)| **v > 0) {
                rows.push((mask.origin.0 + y) as f32);
                columns.push((mask.origin.1 + x) as f32);
            }
            let least = |v: &[f32]| v.iter().copied().fold(f32::MAX, f32::min);
            let most = |v: &[f32]| v.iter().copied().fold(0.0, f32::max) + 1.0;
            // Objects here are rectangles: mask and box agree to a pixel.
            for (a, b) in [
                (*x0, least(&columns)),
                (*x1, most(&columns)),
                (*y0, least(&rows)),
                (*y1, most(&rows)),
            ] {
                assert!((a - b).abs() <= 1.0, "sample {number}: {a} and {b}");
            }
            seen += 1;
        }
    }
    assert!((60..180).contains(&seen), "{seen} of 180 objects are left");
}

#[test]
fn a_broken_set_is_refused_with_file_and_id() {
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut annotations = annotations();
        change(&mut annotations);
        let folder = folder(&annotations);
        let error = refused(data::detection(&split(config(folder.path()), &[])));
        says(&error, &["gt.json", "on_error"]);
        error
    };
    says(
        &broken(&|a| a["annotations"][1]["category_id"] = json!(5)),
        &["annotation id 2", "category id 5"],
    );
    says(
        &broken(&|a| a["annotations"][1]["image_id"] = json!(6)),
        &["annotation id 2", "image id 6"],
    );
    says(
        &broken(&|a| a["annotations"][1]["segmentation"]["counts"] = json!([8, 2, 4, 2, 45])),
        &["annotation id 2", "add up to 61"],
    );
    says(
        &broken(&|a| a["annotations"][2]["segmentation"]["counts"] = json!("8240")),
        &["annotation id 3", "add up to 16"],
    );
    says(
        &broken(&|a| a["annotations"][0]["segmentation"] = json!([[1, 2, 3, 4]])),
        &["annotation id 1", "4 values"],
    );
    says(
        &broken(&|a| drop(a["annotations"][0].as_object_mut().unwrap().remove("segmentation"))),
        &["annotation id 1", "no mask"],
    );
    says(&broken(&|a| a["images"][2]["id"] = json!(5)), &["image id 5 occurs again"]);
}

#[test]
fn a_missing_or_other_image_is_named() {
    let folder = folder(&annotations());
    let picture = folder.path().join("images/c.png");
    RgbImage::new(6, 10).save(&picture).unwrap();
    let set = data::detection(&split(config(folder.path()), &[])).unwrap();
    let error = refused(sample(&*set, 2));
    says(&error, &["c.png", "6×10", "image id 12", "10×6", "EXIF"]);
    std::fs::remove_file(&picture).unwrap();
    let error = refused(data::detection(&split(config(folder.path()), &[])));
    says(&error, &["c.png", "image id 12", "1 of 3 are missing"]);
}

#[test]
fn of_images_with_one_id_none_is_used() {
    let mut annotations = annotations();
    annotations["images"][2]["id"] = json!(5);
    let folder = folder(&annotations);
    let skip = CocoConfig { on_error: OnError::Skip, ..config(folder.path()) };
    let set = data::detection(&split(skip, &[])).unwrap();
    let whole: Vec<bool> = (0..3).map(|index| sample(&*set, index).is_ok()).collect();
    assert_eq!(whole.iter().filter(|whole| **whole).count(), 1, "{whole:?}");
}

#[test]
fn an_empty_list_of_polygons_is_no_mask() {
    let mut annotations = annotations();
    for object in annotations["annotations"].as_array_mut().unwrap() {
        object["segmentation"] = json!([]);
    }
    let folder = folder(&annotations);
    let set = data::detection(&split(config(folder.path()), &[])).unwrap();
    let first = sample(&*set, 0).unwrap().target;
    assert_eq!((first.boxes.len(), first.masks.len()), (3, 0));
}

#[test]
fn padding_belongs_behind_normalize() {
    let folder = folder(&annotations());
    let padded = split(config(folder.path()), &[TransformConfig::Pad { size: [32, 32] }]);
    says(&refused(data::detection(&padded)), &["`pad`", "behind `normalize`"]);
    says(&refused(data::detection_for_evaluation(&padded)), &["`pad`", "behind `normalize`"]);
}

#[test]
fn skipped_samples_are_counted_by_what_is_wrong_with_them() {
    let mut annotations = annotations();
    annotations["annotations"][1]["segmentation"]["counts"] = json!([8, 2]);
    let folder = folder(&annotations);
    std::fs::remove_file(folder.path().join("images/c.png")).unwrap();
    let skip = CocoConfig { on_error: OnError::Skip, ..config(folder.path()) };
    let set = data::detection_for_evaluation(&split(skip, &[])).unwrap();
    let options = LoaderOptions { mode: Mode::Evaluate, batch_size: 2, ..Default::default() };
    let mut loader = Loader::new(set, options).unwrap();
    let names: Vec<String> =
        loader.by_ref().flat_map(|batch| batch.unwrap().metas).map(|meta| meta.name).collect();
    assert_eq!(names, ["deep/b.png"]);
    let skipped: Vec<&String> = loader.skipped().keys().collect();
    assert_eq!(skipped.len(), 2);
    assert!(skipped.iter().any(|message| message.contains("annotation id 2")), "{skipped:?}");
    assert!(skipped.iter().any(|message| message.contains("c.png")), "{skipped:?}");
}

#[test]
fn batches_of_several_sizes_are_padded() {
    let folder = folder(&annotations());
    let set = data::detection_for_evaluation(&split(config(folder.path()), &[])).unwrap();
    let options = LoaderOptions { mode: Mode::Evaluate, batch_size: 3, ..Default::default() };
    let batch = Loader::new(set, options).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.images.dims(), [3, 3, 9, 10]);
    let sizes: Vec<_> = batch.metas.iter().map(|meta| meta.input).collect();
    assert_eq!(sizes, [(6, 10), (9, 4), (6, 10)]);
}

#[test]
fn what_a_model_finds_is_scored_and_written_in_the_files_ids() {
    let folder = folder(&annotations());
    let set = data::detection_for_evaluation(&split(config(folder.path()), &[])).unwrap();
    let mut found = CocoAp::new(&folder.path().join("gt.json")).unwrap();
    let whole = |sample: &Sample<Instances>, index: usize| {
        let (height, width) = sample.meta.original;
        let mask = &sample.target.masks[index];
        let mut bitmap = ndarray::Array2::<u8>::zeros((height, width));
        for ((y, x), value) in mask.bitmap.indexed_iter() {
            bitmap[(mask.origin.0 + y, mask.origin.1 + x)] = *value;
        }
        data::coco::Rle::from_bitmap(bitmap.view()).unwrap()
    };
    for index in 0..set.len() {
        let sample = sample(&*set, index).unwrap();
        let objects = (0..sample.target.boxes.len()).map(|i| Detected {
            class: sample.target.classes[i],
            score: 0.9 - 0.1 * i as f32,
            bbox: sample.target.boxes[i],
            mask: Some(whole(&sample, i)),
        });
        found.add(&sample.meta.name, objects).unwrap();
    }
    for kind in [IouType::Bbox, IouType::Segm] {
        let scores = found.scores(kind).unwrap();
        assert_eq!((scores.stats[0], scores.stats[8]), (1.0, 1.0), "{scores:?}");
        let ids: Vec<_> = scores.per_category.iter().map(|c| (c.id, c.name.as_str())).collect();
        assert_eq!(ids, [(3, "early"), (44, "late")]);
    }
    let results = folder.path().join("results.json");
    data::coco::Detection::write_all(&results, found.detections()).unwrap();
    let gt = folder.path().join("gt.json");
    let output = rescatter()
        .args([
            "score",
            "coco",
            "--gt",
            text(&gt),
            "--dt",
            text(&results),
            "--iou-type",
            "segm",
            "--json",
        ])
        .output()
        .unwrap();
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(scores["stats"][0], 1.0);
    let written: Value = serde_json::from_slice(&std::fs::read(&results).unwrap()).unwrap();
    assert_eq!((&written[0]["category_id"], &written[0]["image_id"]), (&json!(44), &json!(5)));
    assert!(written[0]["segmentation"]["counts"].is_string());
    let error = found.add("unknown.png", []).unwrap_err();
    says(&error.to_string(), &["gt.json", "unknown.png"]);
}

const YAML: &str = "\
task: detection
backbone: { embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4] }
head: {}
data:
  train:
    coco: { images: set/train2017, annotations: set/annotations/instances_train2017.json, filter_empty: true }
    transforms: [{ resize: { size: [96, 96], ratio_range: [0.5, 2.0] } }, { random_crop: { size: [96, 96] } }, { random_flip: {} }, { normalize: {} }, { pad: { size: [96, 96] } }]
  val:
    coco: { images: set/val2017, annotations: set/annotations/instances_val2017.json }
    transforms: [{ resize_shortest_edge: { sizes: [96], max_size: 160 } }, { normalize: {} }]
train: { iterations: 3, batch_size: 4 }
";

fn made(count: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set");
    rescatter()
        .args(["data", "make", "coco", "--output", text(&path), "--count", count, "--seed", "3"])
        .assert()
        .success();
    std::fs::write(folder.path().join("config.yaml"), YAML).unwrap();
    folder
}

#[test]
fn a_made_set_has_everything_that_coco_has_and_nothing_wrong() {
    let folder = made("40");
    let check = ["data", "check", "config.yaml", "--json"];
    let output = rescatter().current_dir(folder.path()).args(check).assert().success();
    let report: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let train = &report["splits"][0];
    assert_eq!((&train["images"], &report["splits"][1]["images"]), (&json!(32), &json!(8)));
    assert!(
        train["classes"].as_array().unwrap().iter().all(|class| class["count"].as_u64() > Some(0))
    );
    assert!(train["ignored"].as_u64() > Some(0), "crowds");
    let path = folder.path().join("set/annotations/instances_train2017.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let objects = file["annotations"].as_array().unwrap();
    let any = |test: &dyn Fn(&Value) -> bool| objects.iter().any(test);
    assert!(any(&|o| o["segmentation"].is_array()), "polygons");
    assert!(any(&|o| o["segmentation"]["counts"].is_string()), "strings of runs");
    assert!(any(&|o| o["iscrowd"] == 0 && o["segmentation"]["counts"].is_array()), "lists of runs");
    assert!(any(&|o| o["iscrowd"] == 1), "crowds");
    let bare = |image: &&Value| !any(&|o| o["image_id"] == image["id"]);
    assert!(
        file["images"].as_array().unwrap().iter().find(bare).is_some(),
        "images without objects"
    );
    let ids: Vec<_> =
        file["categories"].as_array().unwrap().iter().map(|c| c["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 4, 7, 8, 11]);
    let again = made("40");
    let bytes = |folder: &tempfile::TempDir| {
        std::fs::read(folder.path().join("set/annotations/instances_val2017.json")).unwrap()
    };
    assert_eq!(bytes(&folder), bytes(&again), "the same seed makes the same bytes");
    rescatter()
        .current_dir(folder.path())
        .args(["data", "browse", "config.yaml", "--output", "sheets", "--count", "4"])
        .assert()
        .success();
    assert!(folder.path().join("sheets/sheet_000.png").exists());
}

#[test]
fn a_check_lists_what_is_wrong_with_counts() {
    let folder = made("20");
    let path = folder.path().join("set/annotations/instances_train2017.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let clear = json!({ "size": [1, 1], "counts": [1] });
    {
        let objects = file["annotations"].as_array_mut().unwrap();
        assert!(objects.len() > 12);
        objects[1]["id"] = objects[0]["id"].clone();
        objects[2]["bbox"] = json!([-40, 0, 20, 20]);
        objects[3]["segmentation"] = json!([[0.0, 0.0, 0.1, 0.0, 0.0, 0.1]]);
        objects[4]["category_id"] = json!(3);
        objects[5]["image_id"] = json!(1);
        objects[6]["segmentation"] = clear;
        objects[7]["bbox"] = json!([3, 3, 0, 2]);
    }
    file["categories"][0]["name"] = json!("plate");
    let gone = file["images"][3]["file_name"].as_str().unwrap().to_owned();
    std::fs::remove_file(folder.path().join("set/train2017").join(&gone)).unwrap();
    std::fs::write(&path, file.to_string()).unwrap();
    let check = |more: &[&str]| {
        let mut command = rescatter();
        command.current_dir(folder.path()).args(["data", "check", "config.yaml"]).args(more);
        command.output().unwrap()
    };
    let output = check(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults = &report["splits"][0]["faults"];
    for fault in [
        "duplicate_annotation",
        "box_outside",
        "empty_mask",
        "unknown_category",
        "unknown_image",
        "broken_mask",
        "empty_box",
    ] {
        assert_eq!(faults[fault], 1, "{fault}: {faults}");
    }
    let printed = String::from_utf8(check(&[]).stdout).unwrap();
    says(
        &printed,
        &["1 × box outside its image", "category id 3", &gone, "`plate`", "something is wrong"],
    );
}
