//! Sets of whole images with a class: CIFAR's binary files and lists.

use std::path::Path;

use image::{Rgb, RgbImage};
use rescatter::config::{ClassNames, SplitConfig, TransformConfig};
use rescatter::data::{self, Dataset};
use rescatter::rng::{Purpose, Rng};
use serde_json::Value;

use crate::{rescatter, text};

/// A split that keeps the pixels' values, from YAML.
fn split(reader: &str) -> SplitConfig {
    let split: SplitConfig = serde_yaml::with::singleton_map_recursive::deserialize(
        serde_yaml::Deserializer::from_str(reader),
    )
    .unwrap();
    let plain = TransformConfig::Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] };
    SplitConfig { transforms: vec![plain], ..split }
}

fn get(set: &dyn Dataset<Target = u32>, index: usize) -> rescatter::Result<(Vec<f32>, u32)> {
    let sample = set.get(index, &mut Rng::new(0).stream(Purpose::Augment, 0, 0))?;
    Ok((sample.image.iter().map(|v| v.round()).collect(), sample.target))
}

/// A record whose red, green and blue planes count up from `start`.
fn record(labels: &[u8], start: usize) -> Vec<u8> {
    let pixels = (0..3 * 32 * 32).map(|i| ((start + i) % 251) as u8);
    labels.iter().copied().chain(pixels).collect()
}

#[test]
fn cifars_planes_and_both_kinds_of_labels_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("train.bin", [record(&[1, 2], 0), record(&[0, 1], 7)].concat());
    write("fine_label_names.txt", b"ant\nbee\ncat\n\n".to_vec());
    write("coarse_label_names.txt", b"insect\nbeast\n".to_vec());
    let open = |variant: &str| {
        let root = text(folder.path());
        data::classification(&split(&format!(
            "cifar: {{ root: {root}, variant: {variant}, split: train }}"
        )))
    };
    let fine = open("cifar100").unwrap();
    assert_eq!((fine.len(), fine.classes()[2].as_str()), (2, "cat"));
    let (pixels, class) = get(&*fine, 1).unwrap();
    assert_eq!(class, 1);
    let expected: Vec<f32> = (0..3 * 32 * 32).map(|i| ((7 + i) % 251) as f32).collect();
    assert_eq!(pixels, expected);
    assert_eq!(get(&*open("cifar100_coarse").unwrap(), 0).unwrap().1, 1);
    let missing = open("cifar10").err().unwrap();
    assert!(missing.to_string().contains("batches.meta.txt") && missing.hint().is_some());
    write("train.bin", [record(&[1, 2], 0), record(&[0, 3], 7)].concat());
    let wrong = open("cifar100").err().unwrap().to_string();
    assert!(
        wrong.contains("train.bin: record 1 has the label 3, but there are 3 classes"),
        "{wrong}"
    );
    write("train.bin", record(&[1, 2], 0)[..3000].to_vec());
    let cut = open("cifar100").err().unwrap().to_string();
    assert!(cut.contains("3000 bytes are no whole number of records of 3074"), "{cut}");
}

fn list(
    folder: &Path,
    lines: &str,
) -> rescatter::Result<std::sync::Arc<dyn Dataset<Target = u32>>> {
    std::fs::write(folder.join("list.txt"), lines).unwrap();
    let root = text(folder);
    data::classification(&split(&format!(
        "image_list: {{ root: {root}, list: {root}/list.txt, classes: 3 }}"
    )))
}

#[test]
fn a_list_names_images_and_classes_and_its_errors_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("my images")).unwrap();
    for (name, value) in [("a.png", 10), ("my images/b c.png", 20)] {
        RgbImage::from_pixel(2, 1, Rgb([value; 3])).save(folder.path().join(name)).unwrap();
    }
    let set = list(folder.path(), "a.png 2\n\nmy images/b c.png\t0\r\ngone.png 1\n").unwrap();
    assert_eq!((set.len(), set.classes().len()), (3, 3));
    assert_eq!(get(&*set, 0).unwrap(), (vec![10.0; 6], 2));
    assert_eq!(get(&*set, 1).unwrap(), (vec![20.0; 6], 0));
    let gone = get(&*set, 2).unwrap_err().to_string();
    assert!(gone.contains("list.txt: line 4: ") && gone.contains("gone.png"), "{gone}");
    for (lines, reason) in [
        ("a.png 0\na.png\n", "list.txt: line 2: expected `path label`, got `a.png`"),
        ("a.png cat\n", "list.txt: line 1: the label `cat` is no number"),
        ("a.png 0\n\na.png 3\n", "list.txt: line 3: label 3 is outside the 3 classes"),
        ("\n", "list.txt: the list names no image"),
    ] {
        let message = list(folder.path(), lines).err().unwrap().to_string();
        assert!(message.ends_with(reason), "{message}");
    }
}

#[test]
fn classes_may_be_a_number() {
    assert_eq!(data::class_names(&ClassNames::Count(3)).unwrap(), ["0", "1", "2"]);
    assert!(data::class_names(&ClassNames::Count(0)).is_err());
}

/// A config over both splits, which the data commands need.
fn config(folder: &Path, train: &str, val: &str) -> std::path::PathBuf {
    let path = folder.join("config.yaml");
    let text = format!(
        "task: classification
backbone: {{ embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4] }}
head: {{ classifier: {{}} }}
data:
  train:
    {train}
    transforms:
      - rand_augment: {{}}
      - color_jitter: {{ brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }}
      - normalize: {{}}
      - random_erasing: {{ prob: 1.0 }}
  val: {{ {val}, transforms: [normalize: {{}}] }}
  mix: {{ mixup: 0.8, cutmix: 1.0 }}
train: {{ epochs: 2, batch_size: 4 }}
"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn made_sets_are_checked_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, train, val) in [
        (
            "cifar",
            "cifar: { root: ROOT, variant: cifar10, split: train }",
            "cifar: { root: ROOT, variant: cifar10, split: test }",
        ),
        (
            "vtab",
            "vtab: { root: ROOT, task: dtd, list: train800val200 }",
            "vtab: { root: ROOT, task: dtd, list: test }",
        ),
        (
            "classification",
            "image_folder: { root: ROOT/train }",
            "image_folder: { root: ROOT/val }",
        ),
    ] {
        let root = folder.path().join(kind);
        let count = if kind == "vtab" { "15" } else { "30" };
        rescatter()
            .args(["data", "make", kind, "--output", text(&root), "--count", count])
            .assert()
            .success();
        let named = |reader: &str| reader.replace("ROOT", text(&root));
        let config = config(folder.path(), &named(train), &named(val));
        let check = rescatter().args(["data", "check", text(&config), "--json"]).assert().success();
        let report: Value = serde_json::from_slice(&check.get_output().stdout).unwrap();
        let images = |split: usize| report["splits"][split]["images"].as_u64().unwrap();
        let all = count.parse::<u64>().unwrap();
        assert_eq!((images(0), images(1)), (all - all / 5, all / 5), "{kind}");
        let sheets = folder.path().join(format!("{kind}_sheets"));
        let browse = ["data", "browse", text(&config), "--count", "6", "--output", text(&sheets)];
        rescatter().args(browse).assert().success();
        let sheet = image::open(sheets.join("sheet_000.png")).unwrap().to_rgb8();
        assert!(sheet.width() > 100 && sheet.pixels().any(|pixel| pixel.0 != [255; 3]));
    }
    // A broken picture is found, with its line.
    let broken = folder.path().join("vtab/dtd/images/00003.jpg");
    std::fs::write(&broken, "no picture").unwrap();
    let root = text(&folder.path().join("vtab")).to_owned();
    let vtab = |list: &str| format!("vtab: {{ root: {root}, task: dtd, list: {list} }}");
    let config = config(folder.path(), &vtab("train800val200"), &vtab("test"));
    let check = rescatter().args(["data", "check", text(&config)]).assert().failure();
    let said = String::from_utf8_lossy(&check.get_output().stdout).into_owned();
    assert!(said.contains("train800val200.txt: line 3: ") && said.contains("00003.jpg"), "{said}");
}

#[test]
fn what_does_not_fit_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), "image_folder: { root: a }", "image_folder: { root: a }");
    for (change, key) in [
        ("data.mix.mixup=-1", "`data.mix.mixup`"),
        ("train.iterations=3", "`train` needs exactly one of `iterations` and `epochs`"),
        ("train.epochs=0", "`train.epochs`"),
        (
            "data.train.transforms.0.rand_augment.magnitude=31",
            "`data.train.transforms.0.rand_augment`",
        ),
        ("data.train.transforms.1.color_jitter.hue=0.6", "`data.train.transforms.1.color_jitter`"),
        (
            "data.train.transforms.3.random_erasing.prob=2",
            "`data.train.transforms.3.random_erasing.prob`",
        ),
        ("train.cache_features=true", "`data.mix` blends images"),
        (
            "schedule={cosine: {warmup_epochs: 1, warmup_iters: 1}}",
            "`schedule.cosine.warmup_epochs`",
        ),
    ] {
        let check = rescatter().args(["data", "check", text(&path), change]).assert().failure();
        let said = String::from_utf8_lossy(&check.get_output().stderr).into_owned();
        assert!(said.contains(key), "{change}: {said}");
    }
    let random = ["train.cache_features=true", "data.mix=null"];
    let check = rescatter().args(["data", "check", text(&path)]).args(random).assert().failure();
    let said = String::from_utf8_lossy(&check.get_output().stderr).into_owned();
    assert!(said.contains("`rand_augment` is random"), "{said}");
}
