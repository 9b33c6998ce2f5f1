//! `rescatter predict`.

mod classification;
mod detection;
mod tasks;
mod video;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use image::{ImageBuffer, ImageFormat, Luma, Rgb, RgbImage};
use rescatter::data::{self, LabelMap};
use rescatter::ops::in_precision;
use rescatter::weights::checkpoint;
use rescatter::{Error, draw, fs};
use rescatter_heads::tasks::TasksPredictor;
use rescatter_heads::{
    ClassPredictor, DetectionPredictor, Prediction, Predictor, TaskModel, VideoPredictor,
};

use crate::pixels::Pixels;
use crate::trained::{Checkpoint, open};

/// How much of the picture below the colours is hidden.
const OPACITY: f32 = 0.55;

/// Lines of the legend before a new column begins.
const LEGEND_ROWS: usize = 30;

/// Arguments of `rescatter predict`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a run, or an exported file.
    run: PathBuf,
    /// Images, or folders of images; for a video model videos, or folders of their frames.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Where the results go: `overlays/`, `labels/` (or `detections/`), `tokens/` and `legend.png`; of classifiers and of
    /// models that were extended `tasks/`, a JSON file per image with a section per task; of videos `classes/` and `strips/`.
    /// No input may lie in it: an `images/` beside `labels/` would lose its labels.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Which checkpoint of the run.
    #[arg(long, default_value = "best")]
    checkpoint: Checkpoint,
    /// Write the dense feature maps of the head's taps as `features/NAME.safetensors`.
    #[arg(long)]
    features: bool,
    /// Draw only objects that the model is at least as sure of; the JSON holds all.
    #[arg(long, default_value_t = 0.5)]
    score: f32,
    /// Clips per video, spread over its time; by default as many as follow each other densely, or one of the whole video.
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Write labels counted from 1, as ADE20K's test server wants them.
    #[arg(long)]
    ade20k_submission: bool,
    /// Change the run's config, e.g. `dispatch.inference={top_k: 0.3}`; may be repeated.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

impl Args {
    /// Refuses what only models with dense maps can write.
    fn refuse_maps(&self) -> Result<()> {
        if self.features || self.ade20k_submission {
            let what = "`--features` and `--ade20k-submission` are for segmentation models";
            return Err(Error::usage(what).into());
        }
        Ok(())
    }
}

/// Runs `rescatter predict`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    check_output(&args)?;
    let trained = open(&args.run, args.checkpoint, &args.overrides)?.calibrated()?;
    let precision = trained.config.train.precision;
    let images = match trained.model {
        TaskModel::Video(_) => videos(&args.inputs)?,
        _ => inputs(&args.inputs)?,
    };
    let writer = match trained.model {
        TaskModel::Detection(_) => {
            let predictor = DetectionPredictor::new(trained)?;
            AnyWriter::Detection(detection::Writer::new(&args, predictor)?)
        }
        TaskModel::Classification(_) => {
            if trained.earlier.is_empty() {
                let predictor = ClassPredictor::new(trained)?;
                AnyWriter::Classification(classification::Writer::new(&args, predictor)?)
            } else {
                AnyWriter::Tasks(tasks::Writer::new(&args, TasksPredictor::new(trained)?)?)
            }
        }
        TaskModel::Segmentation(_) => {
            AnyWriter::Segmentation(Writer::new(&args, Predictor::new(trained)?)?)
        }
        TaskModel::Video(_) => {
            let pixels = Pixels::of(&trained.config.data.val);
            let predictor = VideoPredictor::new(trained)?;
            AnyWriter::Video(video::Writer::new(&args, predictor, pixels)?)
        }
    };
    let mut failed = 0;
    for (name, path) in &images {
        if let Err(error) = in_precision(precision, || writer.one(name, path)) {
            failed += 1;
            eprintln!("error: {error:#}");
        }
    }
    tracing::info!(
        "{} of {} done; results in {}",
        images.len() - failed,
        images.len(),
        args.output.display()
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses to write where an input lies.
fn check_output(args: &Args) -> Result<()> {
    // A folder that does not exist yet holds nothing.
    let Ok(output) = args.output.canonicalize() else { return Ok(()) };
    for input in &args.inputs {
        let folder = match input.parent() {
            Some(parent) if !input.is_dir() => parent,
            _ => input,
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if folder.canonicalize().is_ok_and(|folder| folder.starts_with(&output)) {
            let (output, input) = (args.output.display(), input.display());
            let what = format!("`--output {output}` is a folder in which the input `{input}` lies");
            return Err(Error::usage(what)
                .with_hint("name a folder of its own, so that no labels or images are overwritten")
                .into());
        }
    }
    Ok(())
}

/// The images by the name of their results, which for those of a folder is their path in it, without the extension.
fn inputs(given: &[PathBuf]) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut images = BTreeMap::new();
    let mut add = |name: PathBuf, path: PathBuf| match images.insert(name.clone(), path.clone()) {
        Some(other) => Err(Error::file(
            &path,
            format!("its results would replace those of {}", other.display()),
        )
        .with_hint(format!("both are called `{}`; predict them separately", name.display()))),
        None => Ok(()),
    };
    for path in given {
        if path.is_dir() {
            for image in data::list_images(path)? {
                add(image.with_extension(""), path.join(&image))?;
            }
        } else if path.is_file() {
            let name = path.file_stem().context("an image without a name")?;
            add(name.into(), path.clone())?;
        } else {
            return Err(Error::file(path, "there is no such image or folder").into());
        }
    }
    Ok(images)
}

/// Videos by their names; a folder is one video.
fn videos(given: &[PathBuf]) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut videos = BTreeMap::new();
    for path in given {
        let name = path.file_stem().context("a video without a name")?;
        if let Some(other) = videos.insert(PathBuf::from(name), path.clone()) {
            let both = format!("its results would replace those of {}", other.display());
            return Err(Error::file(path, both).with_hint("predict them separately").into());
        }
    }
    Ok(videos)
}

/// That of the model's task.
#[allow(clippy::large_enum_variant, reason = "a process holds one of it")]
enum AnyWriter<'a> {
    Segmentation(Writer<'a>),
    Detection(detection::Writer<'a>),
    Classification(classification::Writer<'a>),
    Tasks(tasks::Writer<'a>),
    Video(video::Writer<'a>),
}

impl AnyWriter<'_> {
    fn one(&self, name: &Path, path: &Path) -> Result<()> {
        match self {
            Self::Segmentation(writer) => writer.one(name, path),
            Self::Detection(writer) => writer.one(name, path),
            Self::Classification(writer) => writer.one(name, path),
            Self::Tasks(writer) => writer.one(name, path),
            Self::Video(writer) => writer.one(name, path),
        }
    }
}

/// Draws and writes what was segmented.
struct Writer<'a> {
    args: &'a Args,
    predictor: Predictor,
    palette: Vec<Rgb<u8>>,
}

impl<'a> Writer<'a> {
    /// Writes the legend, which is the same for all images.
    fn new(args: &'a Args, predictor: Predictor) -> Result<Self> {
        let palette = draw::palette(predictor.classes().len());
        let layers = predictor.dispatching_layers();
        save(&args.output.join("legend.png"), &legend(predictor.classes(), &palette, layers))?;
        Ok(Self { args, predictor, palette })
    }

    fn range(&self) -> (f32, f32) {
        (0.0, self.predictor.dispatching_layers() as f32)
    }

    fn one(&self, name: &Path, path: &Path) -> Result<()> {
        let image = data::read_image(path)?;
        let Prediction { labels, token_map, .. } = self.predictor.predict(&image)?;
        save(
            &place(self.args, "overlays", name, "png"),
            &draw::overlay(&image, &labels, &self.palette, OPACITY),
        )?;
        let first = u16::from(self.args.ade20k_submission);
        let values = self.palette.len() + usize::from(first);
        save_labels(&place(self.args, "labels", name, "png"), &labels, (values, first))?;
        if let Some(map) = &token_map {
            let heat = draw::heat_map(&image, map, (1.0, 1.0), self.range(), OPACITY);
            save(&place(self.args, "tokens", name, "png"), &heat)?;
        }
        if self.args.features {
            let path = place(self.args, "features", name, "safetensors");
            make_folder(&path)?;
            let maps = self.predictor.features(&image)?;
            let maps =
                maps.into_iter().enumerate().map(|(i, map)| (format!("map.{i}"), map)).collect();
            checkpoint::write(&path, &maps, &BTreeMap::new())?;
        }
        Ok(())
    }
}

/// Writes the labels counted from `first` as PNG, of 8 bits where so many different values are few enough.
fn save_labels(path: &Path, labels: &LabelMap, (values, first): (usize, u16)) -> Result<()> {
    let (height, width) = labels.dim();
    let value = |x: u32, y: u32| labels[(y as usize, x as usize)] + first;
    let (width, height) = (width as u32, height as u32);
    if values <= 256 {
        save(path, &ImageBuffer::from_fn(width, height, |x, y| Luma([value(x, y) as u8])))
    } else {
        save(path, &ImageBuffer::from_fn(width, height, |x, y| Luma([value(x, y)])))
    }
}

/// `DIR/kind/name.extension`. Appended, because a name may have dots of its own.
fn place(args: &Args, kind: &str, name: &Path, extension: &str) -> PathBuf {
    let mut file = name.as_os_str().to_owned();
    file.push(format!(".{extension}"));
    args.output.join(kind).join(file)
}

/// The classes' colours, and those of the token map if `layers` dispatch.
fn legend(classes: &[String], palette: &[Rgb<u8>], layers: usize) -> RgbImage {
    let mut parts = vec![draw::legend(classes, palette, LEGEND_ROWS)];
    if layers > 0 {
        parts.push(draw::heat_legend((0.0, layers as f32), "layers that worked on a patch"));
    }
    draw::stack(&parts)
}

fn make_folder(file: &Path) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    Ok(())
}

/// Writes a PNG, and the folder it lies in.
fn save<P>(path: &Path, picture: &ImageBuffer<P, Vec<P::Subpixel>>) -> Result<()>
where
    P: image::PixelWithColorType,
    [P::Subpixel]: image::EncodableLayout,
{
    make_folder(path)?;
    let mut png = Cursor::new(Vec::new());
    let encoded = picture.write_to(&mut png, ImageFormat::Png);
    encoded.with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(fs::atomic_write(path, png.into_inner())?)
}
