//! Images beside PNG label maps of the same names: ADE20K, COCO-Stuff, CamVid, or a pair of folders of one's own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::transforms::{Frame, Pipeline};
use super::{Dataset, LabelMap, Sample, files, read_image, read_label};
use crate::config::{MaskFolderConfig, OnError};
use crate::rng::Stream;
use crate::{Error, Result};

/// A folder of images and a folder of label maps.
#[derive(Debug)]
pub struct MaskFolder {
    images: PathBuf,
    labels: PathBuf,
    /// Relative to `images`, and the label's path relative to `labels`.
    pairs: Vec<(PathBuf, PathBuf)>,
    classes: Vec<String>,
    rule: LabelRule,
    on_error: OnError,
    pipeline: Pipeline,
}

impl MaskFolder {
    /// Lists the images and finds their labels.
    ///
    /// # Errors
    /// If a folder is missing, there is no image, an image has no label (unless broken samples are skipped) or one that is
    /// another's or itself, or the label rules contradict the classes.
    pub fn new(config: &MaskFolderConfig, pipeline: Pipeline) -> Result<Self> {
        let classes = files::class_names(&config.classes)?;
        let rule = LabelRule::new(config, &classes)?;
        let images = files::list_images(&config.images)?;
        let present: HashSet<PathBuf> = files::list_files(&config.labels)?.into_iter().collect();
        let pairs: Vec<_> = images
            .into_iter()
            .map(|image| {
                let label = label_name(&image, &config.label_suffix);
                (image, label)
            })
            .collect();
        check_own_labels(config, &pairs)?;
        let missing: Vec<_> = pairs.iter().filter(|(_, label)| !present.contains(label)).collect();
        if let (Some((image, label)), OnError::Stop) = (missing.first(), config.on_error) {
            return Err(missing_label(config, image, label, missing.len(), pairs.len(), &present));
        }
        let (images, labels) = (config.images.clone(), config.labels.clone());
        Ok(Self { images, labels, pairs, classes, rule, on_error: config.on_error, pipeline })
    }

    /// The paths of image and label `index`.
    pub fn paths(&self, index: usize) -> (PathBuf, PathBuf) {
        let (image, label) = &self.pairs[index];
        (self.images.join(image), self.labels.join(label))
    }

    /// Reads image and label `index`, checked and mapped, but not transformed.
    ///
    /// # Errors
    /// If a file is missing or broken, the sizes differ, or a label value is outside the classes.
    pub fn read(&self, index: usize) -> Result<(image::RgbImage, LabelMap)> {
        let (image_path, label_path) = self.paths(index);
        let image = read_image(&image_path)?;
        let mut label = read_label(&label_path)?;
        check_size(&image_path, &image, &label_path, &label)?;
        self.rule.apply(&mut label, &label_path)?;
        Ok((image, label))
    }
}

impl Dataset for MaskFolder {
    type Target = LabelMap;

    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<LabelMap>> {
        let (image, label) = self.read(index)?;
        let name = self.pairs[index].0.display().to_string();
        let frame = Frame::new(image).with_label(label, self.rule.ignore);
        let done = self.pipeline.apply(frame, name, stream)?;
        let target = done.label.ok_or_else(|| Error::usage("a transform lost the label"))?;
        Ok(Sample { image: done.image, target, meta: done.meta })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.paths(index).0.display().to_string()
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.on_error
    }
}

/// `a/b.jpg` and `_x.png` → `a/b_x.png`.
fn label_name(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    image.with_file_name(name)
}

/// Every image has a label of its own, which is no image.
fn check_own_labels(config: &MaskFolderConfig, pairs: &[(PathBuf, PathBuf)]) -> Result<()> {
    let wrong = |image: &Path, reason: String| {
        Err(Error::file(config.images.join(image), reason).with_hint(
            "put images and labels in separate folders, or tell them apart by `label_suffix`",
        ))
    };
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("read", path, e));
    let (images, labels) = (real(&config.images)?, real(&config.labels)?);
    let mut image_of = HashMap::new();
    for (image, label) in pairs {
        let path = config.labels.join(label);
        if images.join(image) == labels.join(label) {
            return wrong(image, format!("its label is the same file, `{}`", path.display()));
        }
        if let Some(other) = image_of.insert(label, image) {
            let other = config.images.join(other);
            let (other, path) = (other.display(), path.display());
            return wrong(image, format!("its label `{path}` is that of `{other}` too"));
        }
    }
    Ok(())
}

fn missing_label(
    config: &MaskFolderConfig,
    image: &Path,
    label: &Path,
    missing: usize,
    total: usize,
    present: &HashSet<PathBuf>,
) -> Error {
    let stem = label_name(image, "");
    let stem = stem.to_string_lossy();
    let other = present
        .iter()
        .filter_map(|p| p.to_str()?.strip_prefix(stem.as_ref()).map(str::to_owned))
        .min();
    let reason = format!(
        "no label `{}` ({missing} of {total} images have none)",
        config.labels.join(label).display()
    );
    let hint = match other {
        Some(suffix) => format!("there is `{stem}{suffix}`: set `label_suffix: {suffix}`"),
        None => "labels have the image's relative path with `label_suffix` in place of the extension; to leave such images \
                 out, set `on_error: skip`"
            .to_owned(),
    };
    Error::file(config.images.join(image), reason).with_hint(hint)
}

fn check_size(
    image_path: &Path,
    image: &image::RgbImage,
    label_path: &Path,
    label: &LabelMap,
) -> Result<()> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if label.dim() == (height, width) {
        return Ok(());
    }
    let (rows, columns) = label.dim();
    let reason = format!(
        "the label is {columns}×{rows} but its image `{}` is {width}×{height}",
        image_path.display()
    );
    let hint = if label.dim() == (width, height) {
        "if the image carries an EXIF rotation, the label must be rotated too: images are turned upright when they are read"
    } else {
        "a label must have the size of its image, pixel by pixel"
    };
    Err(Error::file(label_path, reason).with_hint(hint))
}

/// From stored label values to class numbers: `label_map`, then `reduce_zero_label`, then the check.
#[derive(Debug, Clone)]
pub struct LabelRule {
    /// What each stored value becomes; [`LabelRule::OUTSIDE`] is none of the classes.
    table: Vec<u32>,
    classes: usize,
    ignore: u16,
}

impl LabelRule {
    const OUTSIDE: u32 = u32::MAX;

    /// The rule of `config` for labels of these classes.
    ///
    /// # Errors
    /// If the ignore index is a class or the label of one, or a mapped value is neither a class nor the ignore index.
    pub fn new(config: &MaskFolderConfig, classes: &[String]) -> Result<Self> {
        let ignore = config.ignore_index;
        // Reduced labels count from 1.
        let free = classes.len() + usize::from(config.reduce_zero_label);
        let taken = match classes.get(ignore as usize) {
            Some(name) => Some(("number", name)),
            None => classes.last().filter(|_| (ignore as usize) < free).map(|last| ("label", last)),
        };
        if let Some((what, name)) = taken {
            let reason = format!("`ignore_index` {ignore} is also the {what} of class `{name}`");
            return Err(
                Error::usage(reason).with_hint(format!("choose a value from {free} to 65535"))
            );
        }
        let Ok(ignore) = u16::try_from(ignore) else {
            return Err(Error::usage(format!(
                "`ignore_index` {ignore} is larger than 65535, the largest label"
            )));
        };
        let number = |value: u32| -> u32 {
            let mut value = config.label_map.get(&value).copied().unwrap_or(value);
            if value == u32::from(ignore) {
                return value;
            }
            if config.reduce_zero_label {
                // 0 is "unlabelled"; 0 − 1 wraps to no class.
                value = if value == 0 { u32::from(ignore) } else { value - 1 };
            }
            let known = value == u32::from(ignore) || (value as usize) < classes.len();
            if known { value } else { Self::OUTSIDE }
        };
        if let Some((from, to)) =
            config.label_map.iter().find(|(from, _)| number(**from) == Self::OUTSIDE)
        {
            return Err(Error::usage(format!("`label_map` turns {from} into {to}, which is neither a class nor the ignore index {ignore}"))
                .with_hint(format!("there are {} classes", classes.len())));
        }
        Ok(Self {
            table: (0..=u32::from(u16::MAX)).map(number).collect(),
            classes: classes.len(),
            ignore,
        })
    }

    /// What the stored `value` becomes, or `None` if it is outside the classes.
    pub fn number(&self, value: u16) -> Option<u16> {
        u16::try_from(self.table[usize::from(value)]).ok()
    }

    /// Maps a whole label map in place.
    ///
    /// # Errors
    /// At the first value that is outside the classes; the message names `path`, the value and its place.
    pub fn apply(&self, label: &mut LabelMap, path: &Path) -> Result<()> {
        for ((row, column), value) in label.indexed_iter_mut() {
            let Some(number) = self.number(*value) else {
                return Err(self.outside(path, *value, (row, column)));
            };
            *value = number;
        }
        Ok(())
    }

    fn outside(&self, path: &Path, value: u16, (row, column): (usize, usize)) -> Error {
        let (last, ignore) = (self.classes - 1, self.ignore);
        let reason = format!(
            "label value {value} at row {row}, column {column} is outside the {} classes (0 to {last}, {ignore} = ignored)",
            self.classes
        );
        Error::file(path, reason).with_hint(format!(
            "if {value} means \"not labelled\", add `label_map: {{{value}: {ignore}}}`; if the labels count from 1 with 0 for \
             \"not labelled\", set `reduce_zero_label: true`; otherwise a class is missing from `classes`"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClassNames;

    fn config() -> MaskFolderConfig {
        MaskFolderConfig {
            images: "images".into(),
            labels: "labels".into(),
            label_suffix: ".png".into(),
            classes: ClassNames::List(Vec::new()),
            label_map: Default::default(),
            reduce_zero_label: false,
            ignore_index: 255,
            on_error: OnError::Stop,
        }
    }

    fn classes(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn zero_becomes_ignored_and_the_others_shift_down() {
        let rule =
            LabelRule::new(&MaskFolderConfig { reduce_zero_label: true, ..config() }, &classes(3))
                .unwrap();
        let numbers: Vec<_> = [0, 1, 3, 4, 255].map(|v| rule.number(v)).into();
        assert_eq!(numbers, [Some(255), Some(0), Some(2), None, Some(255)]);
    }

    #[test]
    fn the_map_comes_before_the_reduction() {
        let label_map = [(11, 255), (4, 1)].into();
        let rule = LabelRule::new(
            &MaskFolderConfig { label_map, reduce_zero_label: true, ..config() },
            &classes(3),
        )
        .unwrap();
        assert_eq!([11, 4, 1].map(|v| rule.number(v)), [Some(255), Some(0), Some(0)]);
    }

    #[test]
    fn a_value_outside_the_classes_is_named_with_its_place() {
        let rule = LabelRule::new(&config(), &classes(3)).unwrap();
        let mut label = LabelMap::zeros((2, 4));
        label[(1, 2)] = 3;
        let error = rule.apply(&mut label, Path::new("a.png")).unwrap_err();
        let expected = "a.png: label value 3 at row 1, column 2 is outside the 3 classes (0 to 2, 255 = ignored)";
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().unwrap().contains("label_map: {3: 255}"));
    }

    #[test]
    fn contradictory_rules_are_refused() {
        let error = LabelRule::new(&MaskFolderConfig { ignore_index: 2, ..config() }, &classes(3))
            .unwrap_err();
        assert!(error.to_string().contains("also the number of class `class 2`"), "{error}");
        let reduced = |ignore_index| {
            let config = MaskFolderConfig { ignore_index, reduce_zero_label: true, ..config() };
            LabelRule::new(&config, &classes(3))
        };
        let error = reduced(3).unwrap_err();
        assert!(error.to_string().contains("also the label of class `class 2`"), "{error}");
        assert_eq!(error.hint(), Some("choose a value from 4 to 65535"));
        assert!(reduced(4).is_ok());
        let label_map = [(11, 25)].into();
        let error =
            LabelRule::new(&MaskFolderConfig { label_map, ..config() }, &classes(3)).unwrap_err();
        assert!(error.to_string().contains("turns 11 into 25"), "{error}");
    }
}
