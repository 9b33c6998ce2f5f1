//! What stands for video files in a build without ffmpeg's libraries.

use std::convert::Infallible;
use std::path::Path;

use image::RgbImage;

use crate::{Error, Result};

/// No video file can be opened.
#[derive(Debug)]
pub(super) struct VideoFile(Infallible);

impl VideoFile {
    /// # Errors
    /// Always.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Err(Error::file(path, "this build of rescatter reads no video files").with_hint(
            "install ffmpeg's libraries (`make setup VIDEO=1` on Debian) and build with `--features video`, or give folders \
             of frames",
        ))
    }

    pub(super) fn times(&self) -> &[f64] {
        match self.0 {}
    }

    pub(super) fn read(&self, _: &[usize], _: Option<usize>) -> Result<Vec<RgbImage>> {
        match self.0 {}
    }
}
