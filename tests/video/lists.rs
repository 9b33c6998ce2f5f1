//! Lists of clips and what is read through them.

use std::collections::BTreeMap;

use rescatter::config::{OnError, SplitConfig};
use rescatter::data::{self, Loader, LoaderOptions, Mode};
use tempfile::TempDir;

use crate::clips::{SIZE, number, write_folder};

/// Folders `a`, `b`, `c d` of 12 frames and a list of them.
fn set(list: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for name in ["a", "b", "c d"] {
        write_folder(&folder.path().join(name), 12);
    }
    std::fs::write(folder.path().join("list.txt"), list).unwrap();
    folder
}

fn split(folder: &TempDir, more: &str) -> SplitConfig {
    let root = folder.path().display();
    let text = format!(
        "{{ video_list: {{ root: {root}, file: {root}/list.txt, classes: [x, y, z], frames: 4, {more} }}, \
         transforms: [ {{ normalize: {{ mean: [0, 0, 0], std: [1, 1, 1] }} }} ] }}"
    );
    let value: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    serde_yaml::with::singleton_map_recursive::deserialize(value).unwrap()
}

/// The numbers that the frames of a batch show.
fn shown(images: &candle_core::Tensor) -> Vec<usize> {
    let (frames, _, height, width) = images.dims4().unwrap();
    let image = |i: usize| {
        let values: Vec<f32> = images.get(i).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let pixel = |c: u32, y: u32, x: u32| {
            let at = (c as usize * height + y as usize) * width + x as usize;
            (255.0 * values[at]).round() as u8
        };
        image::RgbImage::from_fn(width as u32, height as u32, |x, y| {
            image::Rgb([0, 1, 2].map(|c| pixel(c, y, x)))
        })
    };
    (0..frames).map(|i| number(&image(i))).collect()
}

#[test]
fn lists_of_every_kind_are_read() {
    let lists = [
        "a 0\nb 2\nc d 1\n",
        "a,0\nb,2\nc d,1",
        "path,label\n\"a\",x\nb,z\n\nc d,y\r\n",
        "a\t0\nb\t2\nc d\t1",
    ];
    for list in lists {
        let folder = set(list);
        let set = data::video(&split(&folder, "sampling: { uniform: {} }")).unwrap();
        let mut stream = rescatter::rng::Rng::new(0).stream(rescatter::rng::Purpose::Augment, 0, 0);
        let labels: Vec<u32> =
            (0..set.len()).map(|i| set.get(i, &mut stream).unwrap().target).collect();
        assert_eq!(labels, [0, 2, 1], "{list}");
    }
}

#[test]
fn something_something_lists_are_read() {
    let folder = set("");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(
        path("labels.json"),
        r#"{"Holding something": "1", "Moving something up": "0"}"#,
    )
    .unwrap();
    let list = r#"[{"id": "a", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
                   {"id": 7, "template": "Moving [something] up"}]"#;
    std::fs::write(path("train.json"), list).unwrap();
    let mut config = split(&folder, "sampling: { uniform: {} }").video_list.unwrap();
    config.file = path("train.json");
    config.classes = rescatter::config::ClassNames::File(path("labels.json"));
    let classes = data::video::class_names(&config).unwrap();
    assert_eq!(classes, ["Moving something up", "Holding something"]);
    let entries: Vec<_> = data::video::read_list(&config, &classes)
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(entries[0], data::video::Entry { path: "a.webm".into(), label: 1 });
    assert_eq!(entries[1], data::video::Entry { path: "7.webm".into(), label: 0 });
}

#[test]
fn wrong_lines_are_named() {
    for (list, part) in [
        ("a 0\nb 3", "line 2: the label `3` of `b` is none of the 3 classes"),
        ("a 0\nb", "line 2: `b` is not `path label`"),
        ("a sky", "line 1: the label `sky` of `a`"),
        ("", "the list names no clip"),
    ] {
        let folder = set(list);
        let Err(error) = data::video(&split(&folder, "sampling: { uniform: {} }")) else {
            panic!("{list} was accepted")
        };
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.to_string().contains("list.txt"), "{error}");
    }
}

#[test]
fn views_follow_each_other_and_crops_lie_along_the_longer_side() {
    let folder = set("a 0");
    let sampling = "sampling: { dense: { rate: 2 } }, views: { clips: 2, crops: 3 }";
    let mut config = split(&folder, sampling);
    let crop = "{ center_crop: { size: [64, 64] } }";
    config.transforms.insert(0, {
        let value: serde_yaml::Value = serde_yaml::from_str(crop).unwrap();
        serde_yaml::with::singleton_map_recursive::deserialize(value).unwrap()
    });
    let set = data::video_for_evaluation(&config).unwrap();
    let options = LoaderOptions { mode: Mode::Evaluate, workers: 0, ..Default::default() };
    let batch = Loader::new(set, options).unwrap().next().unwrap().unwrap();
    // Two clips × three crops × four frames.
    assert_eq!(batch.images.dims(), [24, 3, 64, 64]);
    // The right third of the digits is the same in the left crop of the picture's right end; compare columns instead.
    let column = |image: usize, x: usize| -> Vec<f32> {
        let image = batch.images.get(image).unwrap().narrow(2, x, 1).unwrap();
        image.flatten_all().unwrap().to_vec1().unwrap()
    };
    let width = SIZE.0 as usize;
    assert_eq!(column(0, 16), column(4, 0), "the middle crop begins 16 pixels to the right");
    assert_eq!(column(0, 32), column(8, 0), "the last one ends at the edge of {width} pixels");
}

#[test]
fn a_training_clip_depends_on_its_number_alone_and_its_frames_move_together() {
    let folder = set("a 0\nb 1\nc d 2");
    let mut config = split(&folder, "sampling: { uniform: {} }");
    let flip = "{ random_flip: {} }";
    config.transforms.insert(0, {
        let value: serde_yaml::Value = serde_yaml::from_str(flip).unwrap();
        serde_yaml::with::singleton_map_recursive::deserialize(value).unwrap()
    });
    let batches = |workers: usize| -> Vec<Vec<f32>> {
        let set = data::video(&config).unwrap();
        let options = LoaderOptions { workers, batch_size: 2, ..Default::default() };
        let batches = Loader::new(set, options).unwrap().take(6);
        batches.map(|b| b.unwrap().images.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    assert_eq!(batches(0), batches(2));
    let set = data::video(&config).unwrap();
    let mut flipped = BTreeMap::new();
    for batch in Loader::new(set, LoaderOptions::default()).unwrap().take(20) {
        let batch = batch.unwrap();
        *flipped.entry(batch.metas[0].flipped).or_insert(0) += 1;
        let images =
            if batch.metas[0].flipped { batch.images.flip(&[3]).unwrap() } else { batch.images };
        // Each place lies in its segment of three frames, in order: so no frame was mirrored by itself.
        let numbers = shown(&images);
        assert!(numbers.iter().enumerate().all(|(i, number)| number / 3 == i), "{numbers:?}");
    }
    assert_eq!(flipped.len(), 2, "both ways occur");
}

#[test]
fn broken_clips_stop_the_run_or_are_counted() {
    let folder = set("a 0\nnowhere 1\nb 2\n");
    let config = split(&folder, "sampling: { uniform: {} }, on_error: skip");
    assert_eq!(config.video_list.as_ref().unwrap().on_error, OnError::Skip);
    let set = data::video_for_evaluation(&config).unwrap();
    let options = LoaderOptions { mode: Mode::Evaluate, ..Default::default() };
    let mut loader = Loader::new(set, options.clone()).unwrap();
    assert_eq!(loader.by_ref().map(Result::unwrap).count(), 2);
    let (message, times) = loader.skipped().iter().next().unwrap();
    assert!(message.contains("nowhere: there is no such video") && *times == 1, "{message}");
    let set = data::video_for_evaluation(&split(&folder, "sampling: { uniform: {} }")).unwrap();
    let error = Loader::new(set, options).unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[cfg(not(feature = "video"))]
#[test]
fn a_build_without_ffmpeg_says_how_to_get_one() {
    let folder = set("clip.mp4 0");
    std::fs::write(folder.path().join("clip.mp4"), "any bytes").unwrap();
    let set = data::video(&split(&folder, "sampling: { uniform: {} }")).unwrap();
    let mut stream = rescatter::rng::Rng::new(0).stream(rescatter::rng::Purpose::Augment, 0, 0);
    let error = set.get(0, &mut stream).unwrap_err();
    assert!(error.to_string().contains("this build of rescatter reads no video files"), "{error}");
    assert!(error.hint().unwrap().contains("--features video"));
}
