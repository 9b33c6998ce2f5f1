//! `rescatter data browse`: contact sheets of samples as training sees them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use image::{Rgb, RgbImage};
use ndarray::Array3;
use rescatter::config::{SplitConfig, Task, TransformConfig, load};
use rescatter::data::{self, ClassTarget, Instances, Loader, LoaderOptions, Mixer, Mode};
use rescatter::draw;

use super::AnyConfig;

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
        Task::Classification => {
            let mix = config.data.mix.filter(|_| args.split == Split::Train);
            // Images are mixed with others of their batch.
            let batch_size = if mix.is_some() { config.train.batch_size } else { 1 };
            let options = LoaderOptions { batch_size, ..options };
            classification_tiles(split, options, &Mixer::new(mix, config.seed), args.count)?
        }
        Task::Detection => detection_tiles(split, options, args.count)?,
        Task::Video => anyhow::bail!("`data browse` draws no videos"),
    };
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create `{}`", args.output.display()))?;
    for (number, sheet) in tiles.chunks(PER_SHEET).enumerate() {
        let mut parts = vec![draw::contact_sheet(sheet, COLUMNS)];
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
        let image = pixels.of_batch(&batch.images)?;
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
        let mut image = pixels.of_batch(&batch.images)?;
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
    mixer: &Mixer,
    count: usize,
) -> anyhow::Result<Tiles> {
    let set = data::classification(split)?;
    let names = set.classes().to_vec();
    let pixels = Pixels::of(split);
    let mut tiles = Vec::new();
    for batch in Loader::new(set, options)? {
        let batch = mixer.apply(batch?)?;
        for (i, target) in batch.targets.iter().enumerate().take(count - tiles.len()) {
            let image = pixels.of_batch(&batch.images.narrow(0, i, 1)?)?;
            tiles.push((image, caption(target, &names)));
        }
        if tiles.len() == count {
            break;
        }
    }
    Ok((tiles, None))
}

/// The class, or both of a mixed image with the share of its own.
fn caption(target: &ClassTarget, names: &[String]) -> String {
    let (own, other) = (&names[target.class as usize], &names[target.other as usize]);
    match own == other || target.share == 1.0 {
        true => own.clone(),
        false => format!("{:.2} {own} + {other}", target.share),
    }
}

/// The way back from normalised values to pixels.
struct Pixels {
    mean: [f32; 3],
    std: [f32; 3],
}

impl Pixels {
    fn of(split: &SplitConfig) -> Self {
        let parts = split.concat.iter().flatten().flat_map(|part| &part.transforms);
        let given = split.transforms.iter().chain(parts).find_map(|step| match step {
            TransformConfig::Normalize { mean, std } => Some(Self { mean: *mean, std: *std }),
            _ => None,
        });
        given.unwrap_or(Self { mean: [0.0; 3], std: [1.0; 3] })
    }

    fn of_batch(&self, images: &candle_core::Tensor) -> anyhow::Result<RgbImage> {
        let (_, channels, height, width) = images.dims4()?;
        let values = images.get(0)?.flatten_all()?.to_vec1::<f32>()?;
        let values = Array3::from_shape_vec((channels, height, width), values)?;
        Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
            Rgb(std::array::from_fn(|c| {
                let value = values[(c, y as usize, x as usize)] * self.std[c] + self.mean[c];
                (value * 255.0).round().clamp(0.0, 255.0) as u8
            }))
        }))
    }
}

fn save(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    image.save(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
