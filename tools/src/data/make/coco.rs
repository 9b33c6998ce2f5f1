//! A set in COCO's layout: `train2017/`, `val2017/` and `annotations/instances_*.json`.

use anyhow::Context;
use ndarray::Array2;
use rayon::prelude::*;
use rescatter::data::coco::Rle;
use rescatter::rng::{Purpose, Rng, Stream};
use serde_json::{Value, json};

use super::super::shapes::{self, Picture, SHAPES};
use super::{Args, create_dir, is_validation, write_jpeg};

/// Ids of the classes of [`SHAPES`], with gaps as in COCO.
const CATEGORY_IDS: [u64; 6] = [1, 2, 4, 7, 8, 11];
const SPLITS: [&str; 2] = ["train2017", "val2017"];
/// Height and width of landscapes; portraits are turned.
const SIZE: (usize, usize) = (96, 128);
/// One image in so many shows nothing.
const EMPTY_STEP: usize = 9;
/// One image in so many has a crowd.
const CROWD_STEP: usize = 4;

/// Makes the set.
pub(super) fn make(args: &Args) -> anyhow::Result<()> {
    for folder in SPLITS.iter().chain(&["annotations"]) {
        create_dir(&args.output.join(folder))?;
    }
    let records: Vec<(Value, Vec<Value>)> = (0..args.count)
        .into_par_iter()
        .map(|number| image(args, number))
        .collect::<Result<_, _>>()?;
    let categories: Vec<Value> = SHAPES
        .iter()
        .zip(CATEGORY_IDS)
        .map(|(name, id)| json!({ "id": id, "name": name, "supercategory": "shape" }))
        .collect();
    for (split, name) in SPLITS.iter().enumerate() {
        let mut content = json!({ "images": [], "annotations": [], "categories": categories });
        let mut annotations = Vec::new();
        let mut images = Vec::new();
        for (number, (image, objects)) in records.iter().enumerate() {
            if usize::from(is_validation(number)) == split {
                images.push(image.clone());
                annotations.extend(objects.iter().cloned());
            }
        }
        for (index, annotation) in annotations.iter_mut().enumerate() {
            annotation["id"] = json!(1 + 3 * index);
        }
        content["images"] = Value::Array(images);
        content["annotations"] = Value::Array(annotations);
        let path = args.output.join("annotations").join(format!("instances_{name}.json"));
        std::fs::write(&path, serde_json::to_vec(&content)?)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Writes image `number`; its record and those of its objects, which have no ids yet.
fn image(args: &Args, number: usize) -> anyhow::Result<(Value, Vec<Value>)> {
    let mut stream = Rng::new(args.seed).stream(Purpose::Synthetic, number as u64, 2);
    let size = if stream.chance(0.5) { SIZE } else { (SIZE.1, SIZE.0) };
    let count = if number % EMPTY_STEP == EMPTY_STEP - 1 { 0 } else { 2 + stream.below(4) };
    let picture = shapes::landscape(size, count, &mut stream);
    let id = 10 + 7 * number as u64;
    let file_name = format!("{id:012}.jpg");
    let split = SPLITS[usize::from(is_validation(number))];
    write_jpeg(&picture.image, &args.output.join(split).join(&file_name))?;
    let record = json!({ "id": id, "file_name": file_name, "width": size.1, "height": size.0 });
    let crowded = number % CROWD_STEP == CROWD_STEP - 1;
    let crowd = picture.kinds().last().copied().filter(|_| crowded);
    Ok((record, objects(&picture, id, crowd, &mut stream)?))
}

/// The objects of a picture; the shapes of the class `crowd` are one crowd.
fn objects(
    picture: &Picture,
    image_id: u64,
    crowd: Option<usize>,
    stream: &mut Stream,
) -> anyhow::Result<Vec<Value>> {
    let kinds = picture.kinds();
    let mut found = Vec::new();
    let mut add = |kind: usize, mask: &Rle, iscrowd: u8, segmentation: Value| {
        found.push(json!({
            "id": 0, "image_id": image_id, "category_id": CATEGORY_IDS[kind], "iscrowd": iscrowd,
            "area": mask.area(), "bbox": mask.bbox(), "segmentation": segmentation,
        }));
    };
    for (number, kind) in (1..).zip(&kinds) {
        let mask = runs(&picture.owner.map(|owner| u8::from(usize::from(*owner) == number)))?;
        if Some(*kind) == crowd || mask.area() == 0 {
            continue;
        }
        match picture.outline(number) {
            Some(corners) => {
                let rounded = |value: &f64| (value * 100.0).round() / 100.0;
                let polygon: Vec<f64> = corners.as_flattened().iter().map(rounded).collect();
                let drawn = Rle::from_polygons(mask.size(), std::slice::from_ref(&polygon))
                    .map_err(anyhow::Error::msg)?;
                add(*kind, &drawn, 0, json!([polygon]));
            }
            None if stream.chance(0.5) => add(*kind, &mask, 0, compressed(&mask)),
            None => add(*kind, &mask, 0, uncompressed(&mask)),
        }
    }
    if let Some(kind) = crowd {
        let members: Vec<bool> = kinds.iter().map(|other| *other == kind).collect();
        let inside = |owner: &u8| usize::from(*owner).checked_sub(1).is_some_and(|i| members[i]);
        let mask = runs(&picture.owner.map(|owner| u8::from(inside(owner))))?;
        add(kind, &mask, 1, uncompressed(&mask));
    }
    Ok(found)
}

fn runs(bitmap: &Array2<u8>) -> anyhow::Result<Rle> {
    Rle::from_bitmap(bitmap.view()).map_err(anyhow::Error::msg)
}

fn compressed(mask: &Rle) -> Value {
    json!({ "size": [mask.size().0, mask.size().1], "counts": mask.to_compressed() })
}

fn uncompressed(mask: &Rle) -> Value {
    json!({ "size": [mask.size().0, mask.size().1], "counts": mask.counts() })
}
