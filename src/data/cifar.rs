//! CIFAR-10 and CIFAR-100 in their binary version: a byte or two of labels, then 32 × 32 pixels of red, green and blue.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use super::transforms::{Frame, Pipeline};
use super::{Dataset, Sample, files};
use crate::config::{CifarConfig, CifarSplit, CifarVariant, ClassNames};
use crate::rng::Stream;
use crate::{Error, Result};

const SIDE: usize = 32;
const PIXELS: usize = 3 * SIDE * SIDE;

/// Images of one half of CIFAR, read from its files one at a time.
#[derive(Debug)]
pub struct Cifar {
    files: Vec<PathBuf>,
    /// Which file, which record of it, and the class.
    images: Vec<(usize, usize, u32)>,
    /// Bytes of labels before the pixels.
    labels: usize,
    classes: Vec<String>,
    pipeline: Pipeline,
}

impl Cifar {
    /// Reads the class names and all labels.
    ///
    /// # Errors
    /// If a file is missing or cut off, or a label is no class.
    pub fn new(config: &CifarConfig, pipeline: Pipeline) -> Result<Self> {
        let layout = Layout::of(config.variant);
        let names = config.root.join(layout.names);
        if !names.is_file() {
            return Err(Error::file(&names, "the list of class names is missing").with_hint(
                format!("`root` is the folder of the .bin files: `{}` as unpacked", layout.folder),
            ));
        }
        let classes = files::class_names(&ClassNames::File(names))?;
        let parts = match config.split {
            CifarSplit::Train => layout.train,
            CifarSplit::Test => layout.test,
        };
        let files: Vec<PathBuf> = parts.iter().map(|part| config.root.join(part)).collect();
        let mut images = Vec::new();
        for (number, path) in files.iter().enumerate() {
            let records = labels_of(path, &layout, classes.len())?;
            images.extend(records.into_iter().enumerate().map(|(i, class)| (number, i, class)));
        }
        Ok(Self { files, images, labels: layout.labels, classes, pipeline })
    }

    fn read(&self, index: usize) -> Result<RgbImage> {
        let (file, record, _) = self.images[index];
        let path = &self.files[file];
        let start = record * (self.labels + PIXELS) + self.labels;
        let mut bytes = vec![0; PIXELS];
        File::open(path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(start as u64))?;
                file.read_exact(&mut bytes)
            })
            .map_err(|e| Error::io("read", path, e))?;
        Ok(RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let place = y as usize * SIDE + x as usize;
            Rgb([0, 1, 2].map(|channel| bytes[channel * SIDE * SIDE + place]))
        }))
    }
}

/// Where a variant keeps what.
struct Layout {
    /// As unpacked.
    folder: &'static str,
    names: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// Bytes of labels before the pixels.
    labels: usize,
    /// Which of them counts.
    label: usize,
}

impl Layout {
    fn of(variant: CifarVariant) -> Self {
        let hundred = |names, label| Self {
            folder: "cifar-100-binary",
            names,
            train: &["train.bin"],
            test: &["test.bin"],
            labels: 2,
            label,
        };
        match variant {
            CifarVariant::Cifar10 => Self {
                folder: "cifar-10-batches-bin",
                names: "batches.meta.txt",
                train: &[
                    "data_batch_1.bin",
                    "data_batch_2.bin",
                    "data_batch_3.bin",
                    "data_batch_4.bin",
                    "data_batch_5.bin",
                ],
                test: &["test_batch.bin"],
                labels: 1,
                label: 0,
            },
            CifarVariant::Cifar100 => hundred("fine_label_names.txt", 1),
            CifarVariant::Cifar100Coarse => hundred("coarse_label_names.txt", 0),
        }
    }
}

/// The classes of a file's records.
fn labels_of(path: &Path, layout: &Layout, classes: usize) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let record = layout.labels + PIXELS;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        let reason = format!("{} bytes are no whole number of records of {record}", bytes.len());
        return Err(Error::file(path, reason).with_hint("unpack the archive again"));
    }
    let labels = bytes.chunks_exact(record).map(|record| u32::from(record[layout.label]));
    let labels: Vec<u32> = labels.collect();
    match labels.iter().position(|label| *label as usize >= classes) {
        None => Ok(labels),
        Some(at) => {
            let reason = format!(
                "record {at} has the label {}, but there are {classes} classes (0 to {})",
                labels[at],
                classes - 1
            );
            Err(Error::file(path, reason).with_hint("check `variant` and the list of class names"))
        }
    }
}

impl Dataset for Cifar {
    type Target = u32;

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<u32>> {
        let frame = Frame::new(self.read(index)?);
        let done = self.pipeline.apply(frame, self.name(index), stream)?;
        Ok(Sample { image: done.image, target: self.images[index].2, meta: done.meta })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        let (file, record, _) = self.images[index];
        format!("{}#{record}", self.files[file].display())
    }
}
