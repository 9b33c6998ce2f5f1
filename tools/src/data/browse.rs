//! `rescatter data browse`: contact sheets of samples as training sees them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use image::{Rgb, RgbImage};
use rescatter::config::{SplitConfig, Task, load};
use rescatter::data::{self, Instances, Loader, LoaderOptions, Mode};
use rescatter::draw;

use super::AnyConfig;
use crate::pixels::Pixels;

/// Arguments of `rescatter data browse`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The config whose data is drawn.
    config: PathBuf,
    /// Changes to the config, `key.path=value`.
    overrides: Vec<String>,
    /// Folder of the sheets.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Which split; `val` is drawn in its order and with its own transforms.
    #[arg(long, default_value = "train")]
    split: Split,
    /// Number of samples.
    #[arg(long, value_name = "N", default_value_t = 16)]
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Split {
    Train,
    Val,
}

/// Samples on one sheet.
const PER_SHEET: usize = 16;
const COLUMNS: usize = 4;
const LEGEND_ROWS: usize = 24;

/// Runs `rescatter data browse`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config: AnyConfig = load::load(&args.config, &args.overrides)?;
    let (split, mode) = match args.split {
        Split::Train => (&config.data.train, Mode::Train),
        Split::Val => (&config.data.val, Mode::Evaluate),
    };
    let options = LoaderOptions {
        workers: config.data.workers,
        seed: config.seed,
        mode,
        prefetch: 4,
        ..Default::default()
    };
    let (tiles, legend) = match config.task {
        Task::Segmentation => segmentation_tiles(split, options, args.count)?,
        Task::Classification => classification_tiles(split, options, args.count)?,
        Task::Detection => detection_tiles(split, options, args.count)?,
        Task::Video => video_tiles(split, options, args.count)?,
    };
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create `{}`", args.output.display()))?;
    let columns = if config.task == Task::Video { 1 } else { COLUMNS };
    for (number, sheet) in tiles.chunks(PER_SHEET).enumerate() {
        let mut parts = vec![draw::contact_sheet(sheet, columns)];
        parts.extend(legend.clone());
        save(&draw::stack(&parts), &args.output.join(format!("sheet_{number:03}.png")))?;
    }
    Ok(ExitCode::SUCCESS)
}

type Tiles = (Vec<(RgbImage, String)>, Option<RgbImage>);

fn segmentation_tiles(
    split: &SplitConfig,
    options: LoaderOptions,
    count: usize,
) -> anyhow::Result<Tiles> {
    let set = data::segmentation(split)?;
    let (names, palette) = (set.classes().to_vec(), draw::palette(set.classes().len()));
    let pixels = Pixels::of(split);
    let mut tiles = Vec::new();
    for batch in Loader::new(set, options)?.take(count) {
        let batch = batch?;
        let image = pixels.of_image(&batch.images.get(0)?)?;
        let drawn = draw::overlay(&image, &batch.targets[0], &palette, 0.55);
        let mut pair = RgbImage::new(image.width() * 2, image.height());
        image::imageops::replace(&mut pair, &image, 0, 0);
        image::imageops::replace(&mut pair, &drawn, i64::from(image.width()), 0);
        tiles.push((pair, batch.metas[0].name.clone()));
    }
    Ok((tiles, Some(draw::legend(&names, &palette, LEGEND_ROWS))))
}

fn detection_tiles(
    split: &SplitConfig,
    options: LoaderOptions,
    count: usize,
) -> anyhow::Result<Tiles> {
    let set = data::detection(split)?;
    let (names, palette) = (set.classes().to_vec(), draw::palette(set.classes().len()));
    let pixels = Pixels::of(split);
    let mut tiles = Vec::new();
    for batch in Loader::new(set, options)?.take(count) {
        let batch = batch?;
        let mut image = pixels.of_image(&batch.images.get(0)?)?;
        draw::objects(&mut image, &drawn(&batch.targets[0], &names, &palette));
        tiles.push((image, batch.metas[0].name.clone()));
    }
    Ok((tiles, None))
}

/// Crowds below, then objects with their class.
fn drawn<'a>(
    objects: &'a Instances,
    names: &[String],
    palette: &[Rgb<u8>],
) -> Vec<draw::Drawn<'a>> {
    let crowds = objects.crowds.iter().map(|bbox| draw::Drawn {
        bbox: *bbox,
        mask: None,
        colour: Rgb([255; 3]),
        caption: "crowd".into(),
    });
    let members = objects.boxes.iter().zip(&objects.classes).enumerate();
    let members = members.map(|(index, (bbox, class))| draw::Drawn {
        bbox: *bbox,
        mask: objects.masks.get(index),
        colour: palette[*class as usize],
        caption: names[*class as usize].clone(),
    });
    crowds.chain(members).collect()
}

fn classification_tiles(
    split: &SplitConfig,
    options: LoaderOptions,
    count: usize,
) -> anyhow::Result<Tiles> {
    let set = data::classification(split)?;
    let names = set.classes().to_vec();
    let pixels = Pixels::of(split);
    let mut tiles = Vec::new();
    for batch in Loader::new(set, options)?.take(count) {
        let batch = batch?;
        tiles.push((
            pixels.of_image(&batch.images.get(0)?)?,
            names[batch.targets[0] as usize].clone(),
        ));
    }
    Ok((tiles, None))
}

/// A strip of frames per clip; the views of a validation video follow each other.
fn video_tiles(split: &SplitConfig, options: LoaderOptions, count: usize) -> anyhow::Result<Tiles> {
    let set = match options.mode {
        Mode::Train => data::video(split)?,
        Mode::Evaluate => data::video_for_evaluation(split)?,
    };
    let frames = data::video::first_list(split)?.frames;
    let names = set.classes().to_vec();
    let pixels = Pixels::of(split);
    let mut tiles = Vec::new();
    for batch in Loader::new(set, options)?.take(count) {
        let batch = batch?;
        let caption = format!("{}: {}", batch.metas[0].name, names[batch.targets[0] as usize]);
        for view in 0..batch.images.dim(0)? / frames {
            let clip = batch.images.narrow(0, view * frames, frames)?;
            tiles.push((draw::strip(&pixels.of_clip(&clip)?), caption.clone()));
        }
    }
    Ok((tiles, None))
}

fn save(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    image.save(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
