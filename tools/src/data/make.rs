//! `rescatter data make`: synthetic sample sets in the true on-disk formats.

mod classes;
mod coco;
mod video;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use image::{GrayImage, RgbImage};
use ndarray::Array2;
use rayon::prelude::*;
use rescatter::rng::{Purpose, Rng};

use super::shapes::{self, Content, SHAPES};

/// Arguments of `rescatter data make`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The format.
    kind: Kind,
    /// Where the set goes; must not hold one already.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number of images; every fifth is for validation.
    #[arg(long, value_name = "N", default_value_t = 500)]
    count: usize,
    /// The same seed makes the same bytes.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[clap(rename_all = "snake_case")]
enum Kind {
    /// Segmentation in ADE20K's layout: 0 = unlabelled (`reduce_zero_label: true`).
    Ade20k,
    /// Segmentation in COCO-Stuff's layout: `*_labelTrainIds.png`, 255 = unlabelled.
    CocoStuff,
    /// Detection in COCO's layout: polygons, both kinds of runs, crowds, images without objects, gaps in the ids.
    Coco,
    /// Classification: train/CLASS/*.jpg and val/CLASS/*.jpg, one shape per picture.
    #[value(alias = "classification")]
    Shapes,
    /// Classification in CIFAR-10's binary layout.
    Cifar,
    /// Classification in VTAB-1K's layout of lists: so many images for each of the nineteen tasks.
    Vtab,
    /// Video: clips/*.mp4 (folders of frames in a build without `video`), train.txt, val.txt; the classes are the directions
    /// in which a picture moves.
    Video,
}

const SCENE_PX: usize = 96;
const JPEG_QUALITY: u8 = 92;
/// Images from one validation image to the next.
const VALIDATION_STEP: usize = 5;

/// Runs `rescatter data make`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.output.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(rescatter::Error::file(&args.output, "the folder is not empty")
            .with_hint("choose another folder, or remove this one first")
            .into());
    }
    match args.kind {
        Kind::Shapes => classes::folders(args)?,
        Kind::Cifar => classes::cifar(args)?,
        Kind::Vtab => classes::vtab(args)?,
        Kind::Coco => coco::make(args)?,
        Kind::Video => video::make(args)?,
        Kind::Ade20k => segmentation(args, &Layout::ADE20K)?,
        Kind::CocoStuff => segmentation(args, &Layout::COCO_STUFF)?,
    }
    let validation = (0..args.count).filter(|number| is_validation(*number)).count();
    println!(
        "{}: {} {} for training, {validation} for validation",
        args.output.display(),
        args.count - validation,
        if args.kind == Kind::Video { "clips" } else { "images" },
    );
    Ok(ExitCode::SUCCESS)
}

fn is_validation(number: usize) -> bool {
    number % VALIDATION_STEP == VALIDATION_STEP - 1
}

/// Where a segmentation format keeps its files, and what its labels say.
struct Layout {
    /// Folders of both splits below `images` and `annotations`.
    splits: [&'static str; 2],
    /// Start of the images' names, per split.
    stems: [&'static str; 2],
    digits: usize,
    label_suffix: &'static str,
    /// The stored label of outlines, which no class owns.
    unlabelled: u8,
    /// The stored label of the first class.
    first: u8,
}

impl Layout {
    const ADE20K: Self = Self {
        splits: ["training", "validation"],
        stems: ["ADE_train_", "ADE_val_"],
        digits: 8,
        label_suffix: ".png",
        unlabelled: 0,
        first: 1,
    };
    const COCO_STUFF: Self = Self {
        splits: ["train2017", "val2017"],
        stems: ["", ""],
        digits: 12,
        label_suffix: "_labelTrainIds.png",
        unlabelled: 255,
        first: 0,
    };

    fn label(&self, content: &Array2<Content>) -> GrayImage {
        let (height, width) = content.dim();
        GrayImage::from_fn(width as u32, height as u32, |x, y| {
            image::Luma([match content[(y as usize, x as usize)] {
                Content::Edge => self.unlabelled,
                Content::Background => self.first,
                Content::Shape(kind) => self.first + 1 + kind as u8,
            }])
        })
    }
}

fn segmentation(args: &Args, layout: &Layout) -> anyhow::Result<()> {
    for (kind, split) in
        ["images", "annotations"].iter().flat_map(|kind| layout.splits.map(|split| (kind, split)))
    {
        create_dir(&args.output.join(kind).join(split))?;
    }
    let names: String =
        std::iter::once("background").chain(SHAPES).map(|name| format!("{name}\n")).collect();
    let classes = args.output.join("classes.txt");
    std::fs::write(&classes, names)
        .with_context(|| format!("cannot write `{}`", classes.display()))?;
    (0..args.count).into_par_iter().try_for_each(|number| {
        let mut stream = Rng::new(args.seed).stream(Purpose::Synthetic, number as u64, 1);
        let count = 2 + stream.below(3);
        let picture = shapes::scene(SCENE_PX, count, &mut stream);
        let split = usize::from(is_validation(number));
        let stem =
            format!("{}{:0digits$}", layout.stems[split], number + 1, digits = layout.digits);
        let folder = |kind: &str| args.output.join(kind).join(layout.splits[split]);
        write_jpeg(&picture.image, &folder("images").join(format!("{stem}.jpg")))?;
        let path = folder("annotations").join(format!("{stem}{}", layout.label_suffix));
        layout
            .label(&picture.content)
            .save(&path)
            .with_context(|| format!("cannot write `{}`", path.display()))
    })
}

fn create_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()))
}

fn write_jpeg(image: &RgbImage, path: &Path) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
        .encode_image(image)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}
