//! A video, whatever it is kept in.

use std::path::Path;

use image::RgbImage;

use super::decode::VideoFile;
use super::folder::Folder;
use crate::data::transforms::shrunk;
use crate::{Error, Result};

/// A video whose frames can be read in any order.
///
/// ```no_run
/// use rescatter::data::video::Video;
///
/// let mut video = Video::open("clip.mp4".as_ref())?;
/// let last = video.frames() - 1;
/// let frames = video.read(&[0, last / 2, last], Some(256))?;
/// assert_eq!(frames.len(), 3);
/// # Ok::<(), rescatter::Error>(())
/// ```
#[derive(Debug)]
pub struct Video {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File(VideoFile),
    Folder(Folder),
}

impl Video {
    /// Opens a video file (needs the feature `video`), or a folder whose images are the frames in the order of their names,
    /// numbers by value.
    ///
    /// # Errors
    /// If there is no such file or folder, or it holds no frames.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = if path.is_dir() {
            Kind::Folder(Folder::open(path)?)
        } else if path.is_file() {
            Kind::File(VideoFile::open(path)?)
        } else {
            return Err(Error::file(path, "there is no such video or folder of frames")
                .with_hint("paths in a list start in `root`"));
        };
        Ok(Self { kind })
    }

    /// How many frames it has; at least one.
    pub fn frames(&self) -> usize {
        match &self.kind {
            Kind::File(file) => file.times().len(),
            Kind::Folder(folder) => folder.frames(),
        }
    }

    /// Seconds from the first frame to each; nothing for a folder, which knows no time.
    pub fn times(&self) -> Option<&[f64]> {
        match &self.kind {
            Kind::File(file) => Some(file.times()),
            Kind::Folder(_) => None,
        }
    }

    /// The frame that is shown when a video of as many frames with a constant rate would show frame `place`: `place` itself
    /// but where the rate varies.
    pub fn shown_at(&self, place: usize) -> usize {
        self.times().map_or(place, |times| shown_at(times, place))
    }

    /// The frames with the numbers `wanted`, upright RGB, in this order. With `short_side`, those of larger videos are
    /// reduced so that their shorter side has this length.
    ///
    /// # Errors
    /// If a frame is damaged or beyond the end.
    pub fn read(&mut self, wanted: &[usize], short_side: Option<usize>) -> Result<Vec<RgbImage>> {
        match &mut self.kind {
            Kind::File(file) => file.read(wanted, short_side),
            Kind::Folder(folder) => {
                let frames = folder.read(wanted)?.into_iter();
                frames.map(|frame| shrunk(frame, short_side)).collect()
            }
        }
    }
}

/// With a tolerance of a tenth of a frame: containers round times to their clock.
fn shown_at(times: &[f64], place: usize) -> usize {
    let last = times.len().saturating_sub(1);
    if last == 0 {
        return 0;
    }
    let step = (times[last] - times[0]) / last as f64;
    let moment = times[0] + (place as f64 + 0.1) * step;
    times.partition_point(|time| *time <= moment).saturating_sub(1).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_rate_shows_every_frame_at_its_place() {
        // 30 frames a second by a clock of milliseconds.
        let times: Vec<f64> = (0..300).map(|i| (f64::from(i) * 1000.0 / 30.0).round()).collect();
        assert!((0..300).all(|place| shown_at(&times, place) == place));
        assert_eq!((shown_at(&[0.0], 0), shown_at(&[5.0, 5.0], 1)), (0, 1));
    }

    #[test]
    fn a_varying_rate_shows_the_frame_of_the_moment() {
        // Four frames in the first second, then one that stays for three: a constant rate would show one a second.
        let times = [0.0, 0.25, 0.5, 0.75, 4.0];
        let shown: Vec<usize> = (0..5).map(|place| shown_at(&times, place)).collect();
        assert_eq!(shown, [0, 3, 3, 3, 4]);
    }
}
