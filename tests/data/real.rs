//! Real images, where they lie beside the repository.

use std::path::{Path, PathBuf};

use rescatter::config::{
    ClassNames, CocoConfig, MaskFolderConfig, OnError, SplitConfig, TransformConfig,
};
use rescatter::data::{self, Loader, LoaderOptions, Mode};

use crate::sets::normalize;

/// The folder of a real set, or a line that says why the test did nothing.
fn real(test: &str, folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: {test} because ../shared/data/{folder} is not there");
    None
}

const CAMVID: [&str; 11] = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
];

fn camvid(root: &Path, split: &str, transforms: Vec<TransformConfig>) -> SplitConfig {
    let config = MaskFolderConfig {
        images: root.join(split),
        labels: root.join(format!("{split}annot")),
        label_suffix: ".png".into(),
        classes: ClassNames::List(CAMVID.map(String::from).to_vec()),
        label_map: [(11, 255)].into(),
        reduce_zero_label: false,
        ignore_index: 255,
        on_error: OnError::Stop,
    };
    SplitConfig { ade20k: Some(config), transforms, ..Default::default() }
}

#[test]
fn camvid_is_read_whole() {
    let Some(root) = real("camvid_is_read_whole", "camvid") else { return };
    let train = data::segmentation(&camvid(&root, "train", vec![normalize()])).unwrap();
    assert_eq!(train.len(), 367);
    let set = data::segmentation_for_evaluation(&camvid(&root, "val", vec![normalize()])).unwrap();
    assert_eq!(set.len(), 101);
    let options = LoaderOptions { batch_size: 4, mode: Mode::Evaluate, ..Default::default() };
    let (mut images, mut void) = (0, 0);
    for batch in Loader::new(set, options).unwrap() {
        let batch = batch.unwrap();
        images += batch.targets.len();
        assert_eq!(batch.images.dims()[1..], [3, 360, 480]);
        let labels = batch.targets.iter().flatten();
        assert!(labels.clone().all(|label| *label < 11 || *label == 255));
        void += labels.filter(|label| **label == 255).count();
    }
    assert_eq!(images, 101);
    assert!(void > 100_000, "11 became 255: {void} pixels");
}

#[test]
fn the_recipe_gives_the_same_crops_for_any_number_of_workers() {
    let Some(root) = real("the_recipe_gives_the_same_crops_for_any_number_of_workers", "camvid")
    else {
        return;
    };
    let recipe = vec![
        TransformConfig::Resize {
            size: None,
            ratio_range: [0.5, 2.0],
            keep_ratio: true,
            min_side: Some(252),
            multiple_of: None,
        },
        TransformConfig::RandomCrop { size: [252, 252], cat_max_ratio: 0.75 },
        TransformConfig::RandomFlip { prob: 0.5 },
        TransformConfig::PhotometricDistortion {
            brightness: 32.0,
            contrast: [0.5, 1.5],
            saturation: [0.5, 1.5],
            hue: 18.0,
        },
        normalize(),
        TransformConfig::Pad { size: [252, 252] },
    ];
    let set = data::segmentation(&camvid(&root, "train", recipe)).unwrap();
    let run = |workers| -> Vec<(Vec<f32>, Vec<data::LabelMap>)> {
        let options = LoaderOptions { batch_size: 4, workers, seed: 3, ..Default::default() };
        let batches = Loader::new(set.clone(), options).unwrap().take(3);
        batches
            .map(|b| {
                b.map(|b| (b.images.flatten_all().unwrap().to_vec1().unwrap(), b.targets)).unwrap()
            })
            .collect()
    };
    let alone = run(0);
    assert!(alone.iter().flat_map(|batch| &batch.1).all(|label| label.dim() == (252, 252)));
    for workers in [1, 2, 5] {
        assert!(run(workers) == alone, "{workers} workers");
    }
}

#[test]
fn coco_stuff_ids_are_mapped_to_class_numbers() {
    let Some(root) = real("coco_stuff_ids_are_mapped_to_class_numbers", "coco200") else { return };
    // Raw category ids 0 to 200, 0 = unlabelled: ids 1 to 200 become the classes 0 to 199.
    let config = MaskFolderConfig {
        images: root.join("val2017"),
        labels: root.join("semantic_val2017"),
        label_suffix: ".png".into(),
        classes: ClassNames::List((1..=200).map(|id| format!("category {id}")).collect()),
        label_map: Default::default(),
        reduce_zero_label: true,
        ignore_index: 255,
        on_error: OnError::Stop,
    };
    let split = SplitConfig {
        coco_stuff: Some(config),
        transforms: vec![normalize()],
        ..Default::default()
    };
    let set = data::segmentation(&split).unwrap();
    assert_eq!(set.len(), 60);
    let loader =
        Loader::new(set, LoaderOptions { mode: Mode::Evaluate, ..Default::default() }).unwrap();
    for batch in loader {
        assert!(batch.unwrap().targets[0].iter().all(|label| *label < 200 || *label == 255));
    }
}

#[test]
fn cocos_real_images_and_masks_are_read() {
    let Some(root) = real("cocos_real_images_and_masks_are_read", "coco200") else { return };
    let coco = CocoConfig {
        images: root.join("val2017"),
        annotations: root.join("instances_val2017.json"),
        first: None,
        filter_empty: false,
        on_error: OnError::Stop,
    };
    let shortest = TransformConfig::ResizeShortestEdge { sizes: vec![320], max_size: 533 };
    let transforms = vec![shortest, normalize()];
    let split = SplitConfig { coco: Some(coco), transforms, ..Default::default() };
    let set = data::detection_for_evaluation(&split).unwrap();
    assert_eq!((set.len(), set.classes().len()), (60, 80));
    let options = LoaderOptions { mode: Mode::Evaluate, batch_size: 4, ..Default::default() };
    let mut objects = 0;
    for batch in Loader::new(set, options).unwrap() {
        let batch = batch.unwrap();
        for target in &batch.targets {
            assert_eq!(target.masks.len(), target.boxes.len());
            objects += target.boxes.len();
        }
    }
    assert!(objects > 300, "{objects} objects");
}
