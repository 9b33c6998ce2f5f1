//! Clips whose class is the direction of a motion: one frame alone does not tell it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::RgbImage;
use rayon::prelude::*;
use rescatter::rng::{Purpose, Rng, Stream};

use super::{Args, VALIDATION_STEP, create_dir, is_validation, shapes};

/// Where the view goes, in the order of the labels.
const DIRECTIONS: [&str; 4] = ["left", "right", "up", "down"];
const FRAMES: usize = 16;
const SIDE_PX: usize = 64;

/// Writes the clips, the lists and `classes.txt`.
pub(super) fn make(args: &Args) -> anyhow::Result<()> {
    let clips = args.output.join("clips");
    create_dir(&clips)?;
    let label = |number: usize| {
        // The classes take turns within a split, so that a small set has them all.
        let before = number / VALIDATION_STEP;
        let turn = if is_validation(number) { before } else { number - before };
        turn % DIRECTIONS.len()
    };
    let names = (0..args.count)
        .into_par_iter()
        .map(|number| {
            let mut stream = Rng::new(args.seed).stream(Purpose::Synthetic, number as u64, 3);
            write(&clips, number, &motion(label(number), &mut stream))
        })
        .collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let mut lists = [String::new(), String::new()];
    for (number, name) in names.iter().enumerate() {
        let list = &mut lists[usize::from(is_validation(number))];
        writeln!(list, "clips/{} {}", name.display(), label(number))?;
    }
    let classes = DIRECTIONS.map(|name| format!("{name}\n")).concat();
    for (file, text) in
        [("train.txt", &lists[0]), ("val.txt", &lists[1]), ("classes.txt", &classes)]
    {
        let path = args.output.join(file);
        std::fs::write(&path, text)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// A window that slides over a larger picture.
fn motion(direction: usize, stream: &mut Stream) -> Vec<RgbImage> {
    let speed = 1.0 + 1.5 * stream.uniform();
    let reach = (speed * (FRAMES - 1) as f64).ceil() as usize;
    let picture = shapes::scene(SIDE_PX + reach, 6, stream).image;
    let aside = stream.below(reach + 1);
    let view = |frame: usize| {
        let way = (speed * frame as f64).round() as usize;
        let (x, y) = match direction {
            0 => (reach - way, aside),
            1 => (way, aside),
            2 => (aside, reach - way),
            _ => (aside, way),
        };
        let (side, x, y) = (SIDE_PX as u32, x as u32, y as u32);
        image::imageops::crop_imm(&picture, x, y, side, side).to_image()
    };
    (0..FRAMES).map(view).collect()
}

/// The clip's name below `folder`.
#[cfg(feature = "video")]
fn write(folder: &Path, number: usize, frames: &[RgbImage]) -> anyhow::Result<PathBuf> {
    let name = PathBuf::from(format!("{number:05}.mp4"));
    rescatter::data::video::write_clip(&folder.join(&name), frames)?;
    Ok(name)
}

/// The clip's name below `folder`.
#[cfg(not(feature = "video"))]
fn write(folder: &Path, number: usize, frames: &[RgbImage]) -> anyhow::Result<PathBuf> {
    let name = PathBuf::from(format!("{number:05}"));
    create_dir(&folder.join(&name))?;
    for (i, frame) in frames.iter().enumerate() {
        super::write_jpeg(frame, &folder.join(&name).join(format!("{i:03}.jpg")))?;
    }
    Ok(name)
}
