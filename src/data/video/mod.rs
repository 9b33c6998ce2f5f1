//! Clips of videos: lists of files or of folders of frames, and which frames of them make a clip.
//!
//! A clip becomes one sample whose image has 3·T planes; the loader unfolds them into T images. All frames of a clip go
//! through the transforms with the same random numbers.

#[cfg(feature = "video")]
mod container;
#[cfg(feature = "video")]
mod convert;
#[cfg_attr(not(feature = "video"), path = "undecoded.rs")]
mod decode;
#[cfg(feature = "video")]
mod encode;
mod folder;
#[cfg(feature = "video")]
mod index;
mod list;
mod sampling;
mod source;

use std::path::PathBuf;

use ndarray::{Array3, Axis, concatenate};

pub use list::{Entry, class_names, read_list};
pub use source::Video;

#[cfg(feature = "video")]
pub use encode::write_clip;

use super::transforms::{Done, Frame, Pipeline};
use super::{Dataset, Sample};
use crate::config::{OnError, SplitConfig, VideoListConfig};
use crate::rng::Stream;
use crate::{Error, Result};

/// The names of the classes of the first list in `split`.
///
/// # Errors
/// If there is no list, or the names cannot be read.
pub fn class_names_of(split: &SplitConfig) -> Result<Vec<String>> {
    class_names(first_list(split)?)
}

/// The first list of clips in `split`.
///
/// # Errors
/// If there is none.
pub fn first_list(split: &SplitConfig) -> Result<&VideoListConfig> {
    split.clips().ok_or_else(|| Error::usage("a video split needs `video_list` or `concat`"))
}

/// The places of `count` clips one after the other in a video of `length` frames, as `config` samples them; by default as
/// many dense clips as fit, or one of uniform segments.
pub fn windows(config: &VideoListConfig, length: usize, count: Option<usize>) -> Vec<Vec<usize>> {
    sampling::windows(config.sampling, config.frames, length, count)
}

/// Which views of a video are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Views {
    /// One clip, drawn at random: training.
    Random,
    /// Those that the config asks for, the same every time: evaluation.
    Fixed,
}

/// A list of clips.
#[derive(Debug)]
pub struct VideoList {
    config: VideoListConfig,
    entries: Vec<Entry>,
    classes: Vec<String>,
    pipeline: Pipeline,
    views: Views,
}

impl VideoList {
    /// Reads the list; the clips themselves are opened when they are asked for.
    ///
    /// # Errors
    /// If the list or the class names cannot be read, or a line is wrong.
    pub fn new(config: &VideoListConfig, pipeline: Pipeline, views: Views) -> Result<Self> {
        let classes = class_names(config)?;
        let entries = read_list(config, &classes)?.into_iter().collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), entries, classes, pipeline, views })
    }

    /// The file or folder of clip `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.config.root.join(&self.entries[index].path)
    }

    /// The class of clip `index`.
    pub fn class(&self, index: usize) -> u32 {
        self.entries[index].label
    }

    /// The frames of every view, `clips × crops` in this order of loops, and where their crops lie.
    fn views(&self, video: &Video, stream: &mut Stream) -> Vec<(Vec<usize>, f64)> {
        let VideoListConfig { sampling, frames, views, .. } = self.config;
        let length = video.frames();
        if self.views == Views::Random {
            return vec![(sampling::random_clip(sampling, frames, length, stream), 0.5)];
        }
        let crop = |number: usize| match views.crops {
            1 => 0.5,
            crops => number as f64 / (crops - 1) as f64,
        };
        let clips = sampling::fixed_clips(sampling, frames, length, views.clips);
        let views = clips.iter().flat_map(|clip| (0..views.crops).map(|n| (clip.clone(), crop(n))));
        views.collect()
    }
}

impl Dataset for VideoList {
    type Target = u32;

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<u32>> {
        let Entry { path, label } = &self.entries[index];
        let mut video = Video::open(&self.path(index))?;
        let views = self.views(&video, stream);
        let mut wanted: Vec<usize> =
            views.iter().flat_map(|(places, _)| places).map(|p| video.shown_at(*p)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let frames = video.read(&wanted, self.config.short_side)?;
        let mut planes = Vec::new();
        let mut meta = None;
        for (places, crop) in views {
            for place in places {
                // Every wanted frame was read.
                let at = wanted.partition_point(|frame| *frame < video.shown_at(place));
                let frame = Frame::new(frames[at].clone()).with_crop_place(crop);
                let name = path.display().to_string();
                let Done { image, meta: own, .. } =
                    self.pipeline.apply(frame, name, &mut stream.clone())?;
                planes.push(image);
                meta.get_or_insert(own);
            }
        }
        let meta = meta.ok_or_else(|| Error::file(path, "a clip without frames"))?;
        Ok(Sample { image: stacked(&planes, path)?, target: *label, meta })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.config.on_error
    }
}

/// Frames `(3, H, W)` → `(3·T, H, W)`.
fn stacked(frames: &[Array3<f32>], path: &std::path::Path) -> Result<Array3<f32>> {
    let views: Vec<_> = frames.iter().map(|frame| frame.view()).collect();
    concatenate(Axis(0), &views).map_err(|_| {
        Error::file(path, "the frames of the clip differ in size after the transforms")
            .with_hint("end the transforms with a crop or a resize to one size")
    })
}
