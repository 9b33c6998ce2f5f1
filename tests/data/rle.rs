//! Masks as runs: the reference's strings, unions, areas and rasterised polygons.

use ndarray::Array2;
use rescatter::data::coco::{Merge, Rle};
use serde_json::Value;

use crate::fixture;

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("rle/rle.json")).unwrap()).unwrap()
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

fn size(case: &Value) -> (u32, u32) {
    (number(&case["h"]), number(&case["w"]))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn decoded(case: &Value, counts: &Value) -> Rle {
    Rle::from_compressed(size(case), counts.as_str().unwrap()).unwrap()
}

#[test]
fn runs_strings_and_bitmaps_are_the_same_masks() {
    let reference = reference();
    let mut bitmaps = 0;
    for case in reference["masks"].as_array().unwrap() {
        let counts: Vec<u32> = case["counts"].as_array().unwrap().iter().map(number).collect();
        let mask = Rle::from_counts(size(case), counts.clone()).unwrap();
        assert_eq!(mask.to_compressed(), case["compressed"].as_str().unwrap());
        assert_eq!(decoded(case, &case["compressed"]).counts(), counts);
        assert_eq!(mask.area(), case["area"].as_u64().unwrap());
        assert_eq!(mask.bbox().to_vec(), numbers(&case["bbox"]));
        let Some(rows) = case["mask"].as_array() else { continue };
        let (height, width) = size(case);
        let bitmap = Array2::from_shape_fn((height as usize, width as usize), |(y, x)| {
            u8::from(rows[y].as_str().unwrap().as_bytes()[x] == b'1')
        });
        assert_eq!(mask.to_bitmap(), bitmap);
        assert_eq!(Rle::from_bitmap(bitmap.view()).unwrap().counts(), counts);
        bitmaps += 1;
    }
    assert!(bitmaps > 30);
}

#[test]
fn unions_intersections_and_their_areas_are_the_references() {
    let reference = reference();
    for case in reference["merge"].as_array().unwrap() {
        let masks: Vec<Rle> =
            case["in"].as_array().unwrap().iter().map(|counts| decoded(case, counts)).collect();
        let how = if case["intersect"] == true { Merge::Intersection } else { Merge::Union };
        assert_eq!(Rle::merge(&masks, how).unwrap().to_compressed(), case["out"].as_str().unwrap());
    }
    for case in reference["iou"].as_array().unwrap() {
        let masks = |key: &str| -> Vec<Rle> {
            case[key].as_array().unwrap().iter().map(|counts| decoded(case, counts)).collect()
        };
        let crowds: Vec<bool> =
            case["iscrowd"].as_array().unwrap().iter().map(|v| v.as_u64() == Some(1)).collect();
        for (d, dt) in masks("dt").iter().enumerate() {
            for (g, gt) in masks("gt").iter().enumerate() {
                let pair = [dt.clone(), gt.clone()];
                let area = |how| Rle::merge(&pair, how).unwrap().area() as f64;
                let (common, all) = (area(Merge::Intersection), area(Merge::Union));
                let all = if crowds[g] { dt.area() as f64 } else { all };
                let iou = if common == 0.0 { 0.0 } else { common / all };
                assert!((iou - case["iou"][d][g].as_f64().unwrap()).abs() < 1e-15);
            }
        }
    }
}

#[test]
fn polygons_and_boxes_are_rasterised_as_the_references() {
    let reference = reference();
    for case in reference["polygons"].as_array().unwrap() {
        let polygons: Vec<Vec<f64>> =
            case["polygons"].as_array().unwrap().iter().map(numbers).collect();
        for (polygon, counts) in polygons.iter().zip(case["each"].as_array().unwrap()) {
            let mask = Rle::from_polygons(size(case), std::slice::from_ref(polygon)).unwrap();
            assert_eq!(mask.to_compressed(), counts.as_str().unwrap());
        }
        let mask = Rle::from_polygons(size(case), &polygons).unwrap();
        assert_eq!(mask.to_compressed(), case["merged"].as_str().unwrap());
        assert_eq!(mask.area(), case["area"].as_u64().unwrap());
        assert_eq!(mask.bbox().to_vec(), numbers(&case["bbox"]));
    }
    for case in reference["boxes"].as_array().unwrap() {
        let [x, y, w, h] = <[f64; 4]>::try_from(numbers(&case["bbox"])).unwrap();
        let polygon = vec![x, y, x, y + h, x + w, y + h, x + w, y];
        let mask = Rle::from_polygons(size(case), &[polygon]).unwrap();
        assert_eq!(mask.to_compressed(), case["compressed"].as_str().unwrap());
        assert_eq!(mask.area(), case["area"].as_u64().unwrap());
    }
}

#[test]
fn what_is_no_mask_is_refused_with_its_reason() {
    let refused = |result: Result<Rle, String>, part: &str| {
        let reason = result.unwrap_err();
        assert!(reason.contains(part), "`{part}` is missing in: {reason}");
    };
    refused(Rle::from_counts((3, 4), vec![5, 6]), "add up to 11, but 4×3 pixels are 12");
    refused(Rle::from_counts((3, 4), vec![u32::MAX; 3]), "add up to 12884901885");
    refused(Rle::from_compressed((3, 4), "5"), "add up to 5");
    refused(Rle::from_compressed((3, 4), "5~~"), "'~'");
    refused(Rle::from_compressed((3, 4), "é"), "'é'");
    refused(Rle::from_compressed((3, 4), &"o".repeat(500)), "cannot be decoded");
    refused(Rle::from_polygons((3, 4), &[vec![0.0, 0.0, 1.0, 1.0]]), "4 values");
    refused(Rle::from_polygons((3, 4), &[vec![0.0, 0.0, 1.0, 1.0, 0.0, f64::NAN]]), "NaN");
    refused(Rle::merge(&[], Merge::Union), "no masks");
    // Far outside is no error: nothing of it is in the image.
    let far = Rle::from_polygons((3, 4), &[vec![1e12, 0.0, 2e12, 0.0, 1e12, 1e12]]).unwrap();
    assert_eq!(far.area(), 0);
}
