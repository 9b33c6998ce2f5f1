//! Data sets on disk: what is read, and what is refused with which words.

use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use rescatter::config::{
    ClassNames, ImageFolderConfig, MaskFolderConfig, OnError, SplitConfig, TransformConfig,
};
use rescatter::data::{self, Dataset};
use rescatter::rng::{Purpose, Rng};

use crate::text;

/// A folder with `images/` and `labels/` of four 6 × 4 pictures, one of them in a subfolder; label values 0 to 2.
pub(crate) fn masks() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (number, name) in ["a", "b", "c", "deep/d"].into_iter().enumerate() {
        for (kind, extension) in [("images", "png"), ("labels", "png")] {
            let path = folder.path().join(kind).join(name).with_extension(extension);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if kind == "images" {
                RgbImage::from_pixel(6, 4, Rgb([number as u8; 3])).save(path).unwrap();
            } else {
                GrayImage::from_fn(6, 4, |x, _| Luma([(x % 3) as u8])).save(path).unwrap();
            }
        }
    }
    folder
}

pub(crate) fn config(folder: &Path) -> MaskFolderConfig {
    MaskFolderConfig {
        images: folder.join("images"),
        labels: folder.join("labels"),
        label_suffix: ".png".into(),
        classes: ClassNames::List(["x", "y", "z"].map(String::from).to_vec()),
        label_map: Default::default(),
        reduce_zero_label: false,
        ignore_index: 255,
        on_error: OnError::Stop,
    }
}

pub(crate) fn normalize() -> TransformConfig {
    TransformConfig::Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] }
}

pub(crate) fn split(config: MaskFolderConfig) -> SplitConfig {
    SplitConfig { ade20k: Some(config), transforms: vec![normalize()], ..Default::default() }
}

fn refused<T>(result: rescatter::Result<T>) -> String {
    let error = result.err().expect("this should be refused");
    format!("{error}; {}", error.hint().unwrap_or_default())
}

fn sample(
    set: &dyn Dataset<Target = data::LabelMap>,
    index: usize,
) -> rescatter::Result<data::Sample<data::LabelMap>> {
    set.get(index, &mut Rng::new(0).stream(Purpose::Augment, 0, 0))
}

#[test]
fn images_find_their_labels_through_subfolders() {
    let folder = masks();
    let set = data::segmentation(&split(config(folder.path()))).unwrap();
    assert_eq!((set.len(), set.classes()), (4, &["x", "y", "z"].map(String::from)[..]));
    let last = sample(&*set, 3).unwrap();
    assert_eq!(
        (last.meta.name.as_str(), last.meta.original, last.image[(0, 0, 0)]),
        ("deep/d.png", (4, 6), 3.0)
    );
    assert_eq!(last.target.row(2).to_vec(), [0, 1, 2, 0, 1, 2]);
}

#[test]
fn missing_files_and_folders_are_named_with_the_cure() {
    let folder = masks();
    let missing =
        MaskFolderConfig { images: folder.path().join("pictures"), ..config(folder.path()) };
    assert!(refused(data::segmentation(&split(missing))).contains("pictures: no such folder"));
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = MaskFolderConfig { images: folder.path().join("empty"), ..config(folder.path()) };
    assert!(refused(data::segmentation(&split(empty))).contains("holds no images"));
    std::fs::rename(
        folder.path().join("labels/b.png"),
        folder.path().join("labels/b_labelTrainIds.png"),
    )
    .unwrap();
    let message = refused(data::segmentation(&split(config(folder.path()))));
    assert!(message.contains("images/b.png: no label") && message.contains("1 of 4"), "{message}");
    assert!(message.contains("label_suffix: _labelTrainIds.png"), "{message}");
}

#[test]
fn an_image_and_its_label_are_two_files() {
    let folder = masks();
    let same = MaskFolderConfig { labels: folder.path().join("images"), ..config(folder.path()) };
    let message = refused(data::segmentation(&split(same)));
    assert!(message.contains("images/a.png: its label is the same file"), "{message}");
    assert!(message.contains("`label_suffix`"), "{message}");
    let images = folder.path().join("images");
    std::fs::copy(images.join("a.png"), images.join("a.jpg")).unwrap();
    let message = refused(data::segmentation(&split(config(folder.path()))));
    assert!(message.contains("images/a.png: its label `"), "{message}");
    assert!(message.contains("labels/a.png` is that of `"), "{message}");
    assert!(message.contains("images/a.jpg` too"), "{message}");
}

#[test]
fn a_label_that_does_not_fit_is_named_with_the_cure() {
    let folder = masks();
    let path = folder.path().join("labels/b.png");
    GrayImage::new(4, 6).save(&path).unwrap();
    let set = data::segmentation(&split(config(folder.path()))).unwrap();
    let message = refused(sample(&*set, 1));
    assert!(message.starts_with(&format!("{}: the label is 4×6", text(&path))), "{message}");
    assert!(message.contains("6×4") && message.contains("EXIF"), "{message}");
    GrayImage::from_fn(6, 4, |x, y| Luma([if (x, y) == (5, 2) { 11 } else { 0 }]))
        .save(&path)
        .unwrap();
    let message = refused(sample(&*set, 1));
    assert!(
        message.contains("label value 11 at row 2, column 5 is outside the 3 classes"),
        "{message}"
    );
    assert!(message.contains("label_map: {11: 255}"), "{message}");
    let mapped = MaskFolderConfig { label_map: [(11, 255)].into(), ..config(folder.path()) };
    let good = sample(&*data::segmentation(&split(mapped)).unwrap(), 1).unwrap();
    assert_eq!(good.target[(2, 5)], 255);
}

#[test]
fn parts_are_joined_repeated_and_must_agree_on_the_classes() {
    let folder = masks();
    let part = |config: MaskFolderConfig| SplitConfig { transforms: Vec::new(), ..split(config) };
    let join = |parts: Vec<SplitConfig>, repeat: usize| SplitConfig {
        concat: Some(parts),
        repeat: Some(repeat),
        transforms: vec![normalize()],
        ..Default::default()
    };
    let same = part(config(folder.path()));
    let set = data::segmentation(&join(
        vec![same.clone(), SplitConfig { repeat: Some(2), ..same.clone() }],
        3,
    ))
    .unwrap();
    assert_eq!(set.len(), (4 + 8) * 3);
    assert_eq!(sample(&*set, 12 + 4 + 4 + 3).unwrap().meta.name, "deep/d.png");
    let other = MaskFolderConfig {
        classes: ClassNames::List(["x", "q", "z"].map(String::from).to_vec()),
        ..config(folder.path())
    };
    let message = refused(data::segmentation(&join(vec![same.clone(), part(other)], 1)));
    assert!(message.contains("class 1 is `y`") && message.contains("`q`"), "{message}");
    assert!(refused(data::segmentation(&join(vec![same], 0))).contains("`repeat` is 0"));
    assert!(refused(data::segmentation(&SplitConfig::default())).contains("no reader"));
}

#[test]
fn evaluation_keeps_the_labels_as_they_are() {
    let folder = masks();
    let resize = |ratio_range| TransformConfig::Resize {
        size: Some([8, 12]),
        ratio_range,
        keep_ratio: true,
        min_side: None,
        multiple_of: None,
    };
    let with =
        |step| SplitConfig { transforms: vec![step, normalize()], ..split(config(folder.path())) };
    let evaluated =
        sample(&*data::segmentation_for_evaluation(&with(resize([1.0, 1.0]))).unwrap(), 0).unwrap();
    assert_eq!(
        (evaluated.image.dim(), evaluated.target.dim(), evaluated.meta.input),
        ((3, 8, 12), (4, 6), (8, 12))
    );
    let trained = sample(&*data::segmentation(&with(resize([1.0, 1.0]))).unwrap(), 0).unwrap();
    assert_eq!(trained.target.dim(), (8, 12));
    for step in [
        resize([0.5, 2.0]),
        TransformConfig::RandomFlip { prob: 0.5 },
        TransformConfig::CenterCrop { size: [2, 2] },
    ] {
        assert!(
            refused(data::segmentation_for_evaluation(&with(step)))
                .contains("cannot be used for evaluation")
        );
    }
}

#[test]
fn transforms_that_make_no_sense_are_refused() {
    let folder = masks();
    let with = |transforms| {
        data::segmentation(&SplitConfig { transforms, ..split(config(folder.path())) })
    };
    assert!(refused(with(vec![])).contains("no `normalize`"));
    assert!(
        refused(with(vec![normalize(), TransformConfig::RandomFlip { prob: 0.5 }]))
            .contains("only `random_erasing` and `pad` may follow")
    );
    assert!(
        refused(with(vec![TransformConfig::RandomFlip { prob: 1.5 }, normalize()]))
            .contains("prob 1.5")
    );
    let empty = TransformConfig::RandomCrop { size: [0, 4], cat_max_ratio: 1.0 };
    assert!(refused(with(vec![empty, normalize()])).contains("no pixels"));
}

#[test]
fn class_folders_must_be_the_classes() {
    let folder = tempfile::tempdir().unwrap();
    for class in ["dog", "cat"] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        RgbImage::new(5, 5).save(folder.path().join(class).join("1.png")).unwrap();
    }
    let open = |classes: Option<&[&str]>| {
        let classes =
            classes.map(|names| ClassNames::List(names.iter().map(|n| (*n).to_owned()).collect()));
        let image_folder =
            ImageFolderConfig { root: folder.path().into(), classes, on_error: OnError::Stop };
        data::classification(&SplitConfig {
            image_folder: Some(image_folder),
            transforms: vec![normalize()],
            ..Default::default()
        })
    };
    assert_eq!(open(None).unwrap().classes(), ["cat", "dog"].map(String::from));
    let reversed = open(Some(&["dog", "cat"])).unwrap();
    let targets: Vec<_> = (0..2)
        .map(|i| {
            (
                reversed.name(i),
                reversed.get(i, &mut Rng::new(0).stream(Purpose::Augment, 0, 0)).unwrap().target,
            )
        })
        .collect();
    assert!(
        targets[0].0.ends_with("cat/1.png") && targets[0].1 == 1 && targets[1].1 == 0,
        "{targets:?}"
    );
    assert!(refused(open(Some(&["dog", "cat", "cow"]))).contains("class `cow` has no folder"));
    assert!(refused(open(Some(&["dog"]))).contains("none of the classes"));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let latin = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        std::fs::create_dir(&latin).unwrap();
        RgbImage::new(5, 5).save_with_format(latin.join("1.png"), image::ImageFormat::Png).unwrap();
        assert!(refused(open(None)).contains("the name of this folder is no UTF-8"));
    }
}
