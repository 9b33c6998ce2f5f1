//! Images and labels on their way from disk to a batch.
//!
//! A [`Dataset`] reads and transforms one sample; a [`Loader`] orders, shuffles and prefetches samples and stacks them.
//! Labels are mapped, reduced and checked in one place, the dataset, so that everything after it sees class numbers
//! `0..K` and the ignore index, and nothing else.

mod ahead;
mod cifar;
pub mod coco;
mod combine;
mod files;
mod image_folder;
mod image_io;
mod image_list;
mod instances;
mod label_io;
mod loader;
mod mask_folder;
mod mix;
pub mod transforms;
pub mod video;

use std::sync::Arc;

use candle_core::Tensor;
use ndarray::{Array2, Array3};

pub use ahead::ahead;
pub use cifar::Cifar;
pub use combine::{Concat, Repeat, same_classes};
pub use files::{MAX_CLASSES, class_names, list_images};
pub use image_folder::ImageFolder;
pub use image_io::{decode_image, read_image};
pub use image_list::ImageList;
pub use instances::{InstanceMask, Instances};
pub use label_io::read_label;
pub use loader::{Loader, LoaderOptions, Mode, Skipped};
pub use mask_folder::{LabelRule, MaskFolder};
pub use mix::{ClassTarget, Mixer};
pub use video::VideoList;

use crate::config::{OnError, SplitConfig};
use crate::head::ImageMeta;
use crate::rng::Stream;
use crate::{Error, Result};

/// The class of every pixel, `H × W`, with the ignore index where nothing counts.
pub type LabelMap = Array2<u16>;

/// One image, ready for a batch.
#[derive(Debug, Clone)]
pub struct Sample<T> {
    /// `(3, H, W)`, normalised RGB; `(3·T, H, W)` for a clip of T frames.
    pub image: Array3<f32>,
    /// What the image is trained towards.
    pub target: T,
    /// Its name and sizes.
    pub meta: ImageMeta,
}

/// Images of equal size, stacked.
#[derive(Debug)]
pub struct Batch<T> {
    /// `(B, 3, H, W)`; `(B·T, 3, H, W)` for clips, the frames of a clip adjacent. On the CPU unless [`ahead`] sent them elsewhere.
    pub images: Tensor,
    /// One per image or clip.
    pub targets: Vec<T>,
    /// One per image or clip.
    pub metas: Vec<ImageMeta>,
    /// The samples' numbers in the whole run: the keys of their random streams.
    pub samples: Vec<u64>,
}

/// A set of samples that can be read in any order from any thread.
pub trait Dataset: Send + Sync {
    /// What an image is trained towards.
    type Target: Send + 'static;

    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads sample `index` and transforms it with the numbers of `stream`.
    ///
    /// # Errors
    /// If a file is missing, broken or does not fit; the message names it.
    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<Self::Target>>;

    /// The classes' names in the order of their numbers.
    fn classes(&self) -> &[String];

    /// The image's file, for messages.
    fn name(&self, index: usize) -> String;

    /// Whether the image is higher than wide, where the set knows without reading it: training batches hold images of one
    /// kind.
    fn is_portrait(&self, _index: usize) -> bool {
        false
    }

    /// What happens where the images of a batch differ in size.
    fn batching(&self) -> Batching {
        Batching::OneSize
    }

    /// What happens when this sample is broken.
    fn on_error(&self, _index: usize) -> OnError {
        OnError::Stop
    }
}

/// What happens where the images of a batch differ in size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// It is an error in training; in evaluation the batch ends.
    OneSize,
    /// All are padded right and bottom with the mean colour to the largest; `ImageMeta::input` keeps each one's own size.
    Padded,
}

/// The segmentation set of a split: image and label go through the same transforms.
///
/// # Errors
/// If the split names no segmentation reader or more than one, or the files are not there or do not fit together.
pub fn segmentation(split: &SplitConfig) -> Result<Arc<dyn Dataset<Target = LabelMap>>> {
    segmentation_set(split, &split.transforms, transforms::Labels::Transformed)
}

/// The segmentation set of a split whose labels stay as they are on disk, as mmsegmentation evaluates: predictions are
/// resized to `ImageMeta::original` and compared there. Only transforms that keep the whole image are allowed.
///
/// # Errors
/// As [`segmentation`], and if a transform is random or crops.
pub fn segmentation_for_evaluation(
    split: &SplitConfig,
) -> Result<Arc<dyn Dataset<Target = LabelMap>>> {
    segmentation_set(split, &split.transforms, transforms::Labels::AsOnDisk)
}

/// The classification set of a split.
///
/// # Errors
/// If the split names no classification reader or more than one, or the files are not there.
pub fn classification(split: &SplitConfig) -> Result<Arc<dyn Dataset<Target = u32>>> {
    classification_set(split, &split.transforms)
}

/// The classification set of a split for evaluation: each image always comes out alike.
///
/// # Errors
/// As [`classification`], and if a transform is random.
pub fn classification_for_evaluation(
    split: &SplitConfig,
) -> Result<Arc<dyn Dataset<Target = u32>>> {
    match random_step(split) {
        Some(step) => {
            Err(Error::usage(format!("`{step}` is random: it cannot be used for evaluation"))
                .with_hint("use `resize`, `center_crop`, `normalize` and `pad`"))
        }
        None => classification(split),
    }
}

/// The name of the first transform of a split that draws a random number.
pub(crate) fn random_step(split: &SplitConfig) -> Option<&'static str> {
    let own = split.transforms.iter().find(|step| step.is_random()).map(|step| step.name());
    own.or_else(|| split.concat.iter().flatten().find_map(random_step))
}

/// The detection set of a split: boxes, masks and crowds follow the image through the transforms.
///
/// # Errors
/// If the split names no detection reader or more than one, or the files are not there or do not fit together.
pub fn detection(split: &SplitConfig) -> Result<Arc<dyn Dataset<Target = Instances>>> {
    detection_set(split, &split.transforms, transforms::Labels::Transformed)
}

/// The detection set of a split for evaluation: every image, in the order of the annotation file, whole.
///
/// # Errors
/// As [`detection`], and if a transform is random or crops, or images without objects would be left out.
pub fn detection_for_evaluation(
    split: &SplitConfig,
) -> Result<Arc<dyn Dataset<Target = Instances>>> {
    if leaves_out_images(split) {
        return Err(Error::usage("`filter_empty` leaves out images that evaluation must see")
            .with_hint("remove it from the validation split"));
    }
    detection_set(split, &split.transforms, transforms::Labels::AsOnDisk)
}

/// The set of clips of a split for training: one clip per video, at random.
///
/// # Errors
/// If the split names no reader of videos or more than one, or the lists are not there or wrong.
pub fn video(split: &SplitConfig) -> Result<Arc<dyn Dataset<Target = u32>>> {
    video_set(split, &split.transforms, video::Views::Random)
}

/// The set of clips of a split for evaluation: the views of every video, in the order of the list.
///
/// # Errors
/// As [`video()`].
pub fn video_for_evaluation(split: &SplitConfig) -> Result<Arc<dyn Dataset<Target = u32>>> {
    video_set(split, &split.transforms, video::Views::Fixed)
}

type Transforms = [crate::config::TransformConfig];

fn segmentation_set(
    split: &SplitConfig,
    outer: &Transforms,
    labels: transforms::Labels,
) -> Result<Arc<dyn Dataset<Target = LabelMap>>> {
    one_reader(split)?;
    let set: Arc<dyn Dataset<Target = LabelMap>> = if let Some(parts) = &split.concat {
        let parts = parts.iter().map(|part| segmentation_set(part, inner(part, outer)?, labels));
        Arc::new(Concat::new(parts.collect::<Result<_>>()?)?)
    } else if let Some(config) = split.ade20k.as_ref().or(split.coco_stuff.as_ref()) {
        Arc::new(MaskFolder::new(config, transforms::Pipeline::new(outer, labels)?)?)
    } else {
        return Err(Error::usage("a segmentation split needs `ade20k`, `coco_stuff` or `concat`"));
    };
    Ok(match split.repeat {
        Some(times) => Arc::new(Repeat::new(set, times)?),
        None => set,
    })
}

fn classification_set(
    split: &SplitConfig,
    outer: &Transforms,
) -> Result<Arc<dyn Dataset<Target = u32>>> {
    one_reader(split)?;
    let pipeline = || transforms::Pipeline::new(outer, transforms::Labels::OfTheWhole);
    let set: Arc<dyn Dataset<Target = u32>> = if let Some(parts) = &split.concat {
        let parts = parts.iter().map(|part| classification_set(part, inner(part, outer)?));
        Arc::new(Concat::new(parts.collect::<Result<_>>()?)?)
    } else if let Some(config) = &split.image_folder {
        Arc::new(ImageFolder::new(config, pipeline()?)?)
    } else if let Some(config) = &split.cifar {
        Arc::new(Cifar::new(config, pipeline()?)?)
    } else if let Some(config) = &split.image_list {
        Arc::new(ImageList::new(config, pipeline()?)?)
    } else if let Some(config) = &split.vtab {
        Arc::new(ImageList::vtab(config, pipeline()?)?)
    } else {
        return Err(Error::usage(
            "a classification split needs `image_folder`, `cifar`, `image_list`, `vtab` or `concat`",
        ));
    };
    Ok(match split.repeat {
        Some(times) => Arc::new(Repeat::new(set, times)?),
        None => set,
    })
}

fn detection_set(
    split: &SplitConfig,
    outer: &Transforms,
    labels: transforms::Labels,
) -> Result<Arc<dyn Dataset<Target = Instances>>> {
    one_reader(split)?;
    let set: Arc<dyn Dataset<Target = Instances>> = if let Some(parts) = &split.concat {
        let parts = parts.iter().map(|part| detection_set(part, inner(part, outer)?, labels));
        Arc::new(Concat::new(parts.collect::<Result<_>>()?)?)
    } else if let Some(config) = &split.coco {
        Arc::new(coco::CocoSet::new(config, transforms::Pipeline::new(outer, labels)?)?)
    } else {
        return Err(Error::usage("a detection split needs `coco` or `concat`"));
    };
    Ok(match split.repeat {
        Some(times) => Arc::new(Repeat::new(set, times)?),
        None => set,
    })
}

fn video_set(
    split: &SplitConfig,
    outer: &Transforms,
    views: video::Views,
) -> Result<Arc<dyn Dataset<Target = u32>>> {
    one_reader(split)?;
    let set: Arc<dyn Dataset<Target = u32>> = if let Some(parts) = &split.concat {
        let parts = parts.iter().map(|part| video_set(part, inner(part, outer)?, views));
        Arc::new(Concat::new(parts.collect::<Result<_>>()?)?)
    } else if let Some(config) = &split.video_list {
        let pipeline = transforms::Pipeline::new(outer, transforms::Labels::OfTheWhole)?;
        Arc::new(VideoList::new(config, pipeline, views)?)
    } else {
        return Err(Error::usage("a video split needs `video_list` or `concat`"));
    };
    Ok(match split.repeat {
        Some(times) => Arc::new(Repeat::new(set, times)?),
        None => set,
    })
}

fn leaves_out_images(split: &SplitConfig) -> bool {
    split.coco.as_ref().is_some_and(|coco| coco.filter_empty)
        || split.concat.iter().flatten().any(leaves_out_images)
}

/// The transforms of a part of `concat`: its own or the whole's, never both.
fn inner<'a>(part: &'a SplitConfig, outer: &'a Transforms) -> Result<&'a Transforms> {
    match (part.transforms.is_empty(), outer.is_empty()) {
        (true, _) => Ok(outer),
        (false, true) => Ok(&part.transforms),
        (false, false) => Err(Error::usage("`concat` and one of its parts both have `transforms`")
            .with_hint("keep them in one of the two places")),
    }
}

fn one_reader(split: &SplitConfig) -> Result<()> {
    let readers = [
        ("ade20k", split.ade20k.is_some()),
        ("coco_stuff", split.coco_stuff.is_some()),
        ("image_folder", split.image_folder.is_some()),
        ("cifar", split.cifar.is_some()),
        ("image_list", split.image_list.is_some()),
        ("vtab", split.vtab.is_some()),
        ("coco", split.coco.is_some()),
        ("video_list", split.video_list.is_some()),
        ("concat", split.concat.is_some()),
    ];
    let named: Vec<_> = readers.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match named.len() {
        1 => Ok(()),
        0 => Err(Error::usage("a data split names no reader").with_hint(
            "give exactly one of `ade20k`, `coco_stuff`, `image_folder`, `cifar`, `image_list`, `vtab`, `coco`, `video_list`, `concat`",
        )),
        _ => Err(Error::usage(format!("a data split names several readers: {}", named.join(", ")))
            .with_hint("to join sets, put each under its own entry of `concat`")),
    }
}
