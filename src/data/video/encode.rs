//! Writing clips, for sample sets.

use std::path::Path;

use image::RgbImage;
use video_rs::encode::Settings;
use video_rs::ffmpeg::{format, frame};
use video_rs::{Encoder, Error as VideoError};

use crate::{Error, Result};

/// Microseconds from one frame to the next: 25 a second.
const STEP: i64 = 40_000;

/// Writes `frames` as an H.264 video of 25 frames a second; all have one even size.
///
/// # Errors
/// If ffmpeg's libraries here hold no such encoder, a frame has another size, or the file cannot be written.
pub fn write_clip(path: &Path, frames: &[RgbImage]) -> Result<()> {
    let failed = |e: VideoError| Error::file(path, format!("the clip cannot be written: {e}"));
    let Some(first) = frames.first() else {
        return Err(Error::file(path, "a clip needs a frame"));
    };
    let (width, height) = first.dimensions();
    video_rs::init().map_err(|e| Error::usage(format!("ffmpeg's libraries fail to start: {e}")))?;
    let settings = Settings::preset_h264_yuv420p(width as usize, height as usize, false);
    let mut encoder = Encoder::new(path, settings).map_err(failed)?;
    for (number, image) in frames.iter().enumerate() {
        if image.dimensions() != (width, height) {
            return Err(Error::file(path, "the frames of a clip must have one size"));
        }
        let mut picture = frame::Video::new(format::Pixel::RGB24, width, height);
        let stride = picture.stride(0).max(1);
        let lines = picture.data_mut(0).chunks_mut(stride);
        for (line, row) in lines.zip(image.as_raw().chunks(3 * width as usize)) {
            line[..row.len()].copy_from_slice(row);
        }
        picture.set_pts(Some(number as i64 * STEP));
        encoder.encode_raw(picture).map_err(failed)?;
    }
    encoder.finish().map_err(failed)
}
