//! Detection from data on disk to drawn predictions, through the binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use sandbox::Sandbox;
use serde_json::Value;

const TRUTH: &str = "set/annotations/instances_val2017.json";

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn file(sandbox: &Sandbox, name: &str) -> Value {
    json(&std::fs::read(sandbox.path(name)).unwrap())
}

#[test]
fn a_detector_is_trained_scored_and_drawn() {
    let sandbox = Sandbox::with_objects();
    sandbox.succeeds("train detect.yaml --run run");
    let results = file(&sandbox, "run/results.json");
    let found = file(&sandbox, "run/coco_instances_results.json");
    assert!(!found.as_array().unwrap().is_empty());

    // The results file alone gives the same numbers; it has the ids of the annotation file.
    let ids: Vec<u64> = file(&sandbox, TRUTH)["categories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|category| category["id"].as_u64().unwrap())
        .collect();
    assert!(
        found.as_array().unwrap().iter().all(|d| ids.contains(&d["category_id"].as_u64().unwrap()))
    );
    for (kind, count) in [("bbox", 12), ("segm", 3)] {
        let command = format!("score coco --gt {TRUTH} --dt run/coco_instances_results.json");
        let scores = sandbox.succeeds(&format!("{command} --iou-type {kind} --json"));
        let scores = json(&scores.stdout);
        // Sizes of masks are those of their boxes there, so only what holds for all sizes is comparable.
        for (i, name) in ["AP", "AP50", "AP75", "APs", "APm", "APl"].iter().enumerate().take(count)
        {
            assert_eq!(scores["stats"][i], results[format!("{kind}.{name}")], "{kind}.{name}");
        }
    }

    // Evaluating again gives the same; mirrored views are another evaluation.
    let again = json(&sandbox.succeeds("eval run --json").stdout);
    assert_eq!(again["bbox.AP"], results["bbox.AP"]);
    assert_eq!(file(&sandbox, "run/coco_instances_results.json"), found);
    let flipped = "eval run eval.flip=true --json --detections flipped.json";
    let flipped = json(&sandbox.succeeds(flipped).stdout);
    assert!(flipped["segm.AP50"].is_number() && flipped["kept"].is_number());
    assert_ne!(file(&sandbox, "flipped.json"), found);

    sandbox.succeeds("predict run set/val2017 --output out --score 0.05");
    let names = |folder: &str| sandbox.names(folder).len();
    assert_eq!((names("out/overlays"), names("out/tokens"), names("out/detections")), (3, 3, 3));
    let name = sandbox.names("out/detections").remove(0);
    let one = file(&sandbox, &format!("out/detections/{name}"));
    let first = &one["detections"][0];
    assert!(first["label"].is_string() && first["bbox"].as_array().unwrap().len() == 4);
    assert_eq!(first["segmentation"]["size"], serde_json::json!([one["height"], one["width"]]));

    // Where the findings cannot be kept beside the run, the scores are told all the same.
    let beside = sandbox.path("run/coco_instances_results.json");
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    let told = sandbox.succeeds("eval run --json");
    assert_eq!(json(&told.stdout)["bbox.AP"], results["bbox.AP"]);
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("detections are not kept"), "{said}");
}

#[test]
fn a_validation_set_without_scores_is_found_before_the_training() {
    let sandbox = Sandbox::with_objects();
    let whole = file(&sandbox, TRUTH);
    let refused = |truth: &Value, more: &str| {
        std::fs::write(sandbox.path(TRUTH), truth.to_string()).unwrap();
        let text = sandbox.fails(&format!("train detect.yaml --run run {more}"));
        assert!(!sandbox.path("run").exists(), "{text}");
        text
    };
    let mut twice = whole.clone();
    twice["annotations"][1]["id"] = twice["annotations"][0]["id"].clone();
    let text = refused(&twice, "");
    assert!(text.contains("instances_val2017.json"), "{text}");
    let mut boxes = whole.clone();
    for object in boxes["annotations"].as_array_mut().unwrap() {
        object.as_object_mut().unwrap().remove("segmentation");
    }
    let text = refused(&boxes, "");
    assert!(text.contains("instances_val2017.json"), "{text}");
    let text = refused(&whole, r#"eval.mode={"slide":{"crop":32,"stride":16}}"#);
    assert!(text.contains("a detector sees whole images"), "{text}");
    let part = format!(r#"{{"coco":{{"images":"set/val2017","annotations":"{TRUTH}"}}}}"#);
    let joined = format!(r#"data.val={{"concat":[{part}],"transforms":[{{"normalize":{{}}}}]}}"#);
    let text = refused(&whole, &joined);
    assert!(text.contains("detection is evaluated on one annotation file"), "{text}");
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    let sandbox = Sandbox::with_objects();
    sandbox.succeeds("train detect.yaml --run one data.workers=0");
    sandbox.succeeds("train detect.yaml --run two data.workers=3");
    assert_eq!(sandbox.tensors("one/last.safetensors"), sandbox.tensors("two/last.safetensors"));
}

#[test]
fn a_cascade_of_boxes_alone_needs_no_masks() {
    let sandbox = Sandbox::with_objects();
    let path = sandbox.path("set/annotations/instances_train2017.json");
    let mut annotations = json(&std::fs::read(&path).unwrap());
    for object in annotations["annotations"].as_array_mut().unwrap() {
        object.as_object_mut().unwrap().remove("segmentation");
    }
    std::fs::write(&path, annotations.to_string()).unwrap();
    let text = sandbox.fails("train detect.yaml --run masks");
    assert!(text.contains("`head.mask_rcnn.mask_head: null` trains boxes alone"), "{text}");
    let boxes = "head.mask_rcnn.mask_head=null head.mask_rcnn.cascade={}";
    sandbox.succeeds(&format!("train detect.yaml --run boxes {boxes}"));
    let results = file(&sandbox, "boxes/results.json");
    assert!(results["bbox.AP"].is_number() && results["segm.AP"].is_null());
}
