//! COCO's images and objects as a data set.

use std::collections::HashMap;
use std::path::PathBuf;

use image::RgbImage;

use super::annotations::{Annotations, CategoryRecord, ImageRecord, ObjectRecord};
use super::objects::Journey;
use super::problems::{Depth, Fault};
use crate::config::{CocoConfig, OnError};
use crate::data::transforms::{Frame, Pipeline};
use crate::data::{Batching, Dataset, Instances, Sample, read_image};
use crate::rng::Stream;
use crate::{Error, Result};

/// A folder of images with an annotation file.
#[derive(Debug)]
pub struct CocoSet {
    annotations: PathBuf,
    images: PathBuf,
    entries: Vec<Entry>,
    /// Sorted by id: the place is the class.
    categories: Vec<CategoryRecord>,
    names: Vec<String>,
    masks: bool,
    on_error: OnError,
    pipeline: Pipeline,
}

/// An image with its objects, crowds among them.
#[derive(Debug)]
struct Entry {
    image: ImageRecord,
    objects: Vec<ObjectRecord>,
    /// Why it cannot be used.
    fault: Option<String>,
}

impl CocoSet {
    /// Reads the annotations and looks for the images. With `filter_empty` images without an object (crowds do not count)
    /// are left out.
    ///
    /// # Errors
    /// If the annotation file cannot be read; and, unless broken samples are skipped, if an image is missing or anything
    /// in the file is broken.
    pub fn new(config: &CocoConfig, pipeline: Pipeline) -> Result<Self> {
        if pipeline.pads_pixels() {
            return Err(Error::usage(
                "`pad` before `normalize` makes objects reach into the padding",
            )
            .with_hint("move it behind `normalize`"));
        }
        let mut file = Annotations::of(config)?;
        let masks = file.objects.iter().any(ObjectRecord::has_mask);
        let mut faults = faults(&file, config)?;
        let places = file.image_index();
        let mut objects: Vec<Vec<ObjectRecord>> = file.images.iter().map(|_| Vec::new()).collect();
        for object in std::mem::take(&mut file.objects) {
            if let Some(index) = places.get(&object.image_id) {
                objects[*index].push(object);
            }
        }
        let names = file.class_names();
        let entries: Vec<Entry> = std::mem::take(&mut file.images)
            .into_iter()
            .zip(objects)
            .enumerate()
            .map(|(index, (image, objects))| Entry { image, objects, fault: faults[index].take() })
            .filter(|entry| !config.filter_empty || entry.objects.iter().any(|o| !o.iscrowd))
            .collect();
        if entries.is_empty() {
            return Err(Error::file(&config.annotations, "no image has an object")
                .with_hint("set `filter_empty: false` to keep images without objects"));
        }
        Ok(Self {
            annotations: config.annotations.clone(),
            images: config.images.clone(),
            entries,
            categories: file.categories,
            names,
            masks,
            on_error: config.on_error,
            pipeline,
        })
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.images.join(&self.entries[index].image.file_name)
    }

    /// What the annotation file says of image `index`: its record and its objects.
    pub fn records(&self, index: usize) -> (&ImageRecord, &[ObjectRecord]) {
        let entry = &self.entries[index];
        (&entry.image, &entry.objects)
    }

    /// The categories in the order of the classes.
    pub fn categories(&self) -> &[CategoryRecord] {
        &self.categories
    }

    /// Reads image `index`, untransformed.
    ///
    /// # Errors
    /// If the file is missing or broken, or its size is not that of the annotations.
    pub fn read(&self, index: usize) -> Result<RgbImage> {
        let entry = &self.entries[index];
        let path = self.path(index);
        let image = read_image(&path)?;
        let (given, real) = ((entry.image.width, entry.image.height), image.dimensions());
        if given == real {
            return Ok(image);
        }
        let reason = format!(
            "is {}×{}, but image id {} of `{}` is {}×{}",
            real.0,
            real.1,
            entry.image.id,
            self.annotations.display(),
            given.0,
            given.1
        );
        let turned = given == (real.1, real.0);
        Err(Error::file(path, reason).with_hint(match turned {
            true => "the annotations may have been made without the file's EXIF rotation: rotate the pixels and remove it",
            false => "the image was resized after it was annotated: use the original, or correct the annotations",
        }))
    }
}

/// Per image why it cannot be used. The first fault is an error unless broken samples are skipped.
fn faults(file: &Annotations, config: &CocoConfig) -> Result<Vec<Option<String>>> {
    let mut faults = vec![None; file.images.len()];
    let (mut lost, mut repeated) = (0usize, HashMap::new());
    for problem in file.problems(Depth::Masks).into_iter().filter(|p| p.fault.stops_training()) {
        // Without categories of their own, no object can be used.
        let fatal = problem.fault == Fault::DuplicateCategory;
        if fatal || config.on_error == OnError::Stop {
            return Err(Error::file(&file.path, problem.message).with_hint(
                "`rescatter data check` lists everything; `on_error: skip` leaves such images out",
            ));
        }
        match problem.image {
            Some(index) => {
                if problem.fault == Fault::DuplicateImage {
                    repeated.insert(file.images[index].id, problem.message.clone());
                }
                faults[index] = Some(problem.message);
            }
            None => lost += 1,
        }
    }
    // It is not known which of several images with one id an object belongs to.
    for (fault, image) in faults.iter_mut().zip(&file.images) {
        if fault.is_none() {
            *fault = repeated.get(&image.id).cloned();
        }
    }
    if lost > 0 {
        tracing::warn!(
            "{}: {lost} records belong to no image and are left out",
            file.path.display()
        );
    }
    if config.on_error == OnError::Stop {
        let missing = |image: &&ImageRecord| !config.images.join(&image.file_name).is_file();
        let mut missing = file.images.iter().filter(missing);
        if let Some(first) = missing.next() {
            let reason = format!(
                "image id {} of `{}` is not there ({} of {} are missing)",
                first.id,
                file.path.display(),
                1 + missing.count(),
                file.images.len()
            );
            return Err(Error::file(config.images.join(&first.file_name), reason)
                .with_hint("`images` is the folder that `file_name` starts in"));
        }
    }
    Ok(faults)
}

impl Dataset for CocoSet {
    type Target = Instances;

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<Instances>> {
        let Entry { image: record, objects, fault } = &self.entries[index];
        if let Some(fault) = fault {
            return Err(Error::file(&self.annotations, fault));
        }
        let image = self.read(index)?;
        let done = self.pipeline.apply(Frame::new(image), record.file_name.clone(), stream)?;
        let journey = Journey {
            original: (record.height, record.width),
            input: done.meta.input,
            geometry: &done.geometry,
            masks: self.masks,
        };
        let class_of =
            |id| self.categories.binary_search_by_key(&id, |c| c.id).ok().map(|class| class as u32);
        let target = journey
            .instances(objects, class_of)
            .map_err(|reason| Error::file(&self.annotations, reason))?;
        Ok(Sample { image: done.image, target, meta: done.meta })
    }

    fn classes(&self) -> &[String] {
        &self.names
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.on_error
    }

    fn is_portrait(&self, index: usize) -> bool {
        let image = &self.entries[index].image;
        image.height > image.width
    }

    fn batching(&self) -> Batching {
        Batching::Padded
    }
}
