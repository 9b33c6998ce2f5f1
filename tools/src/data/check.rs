//! `rescatter data check`: reads every file of both splits once.

mod coco;
mod video;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use rayon::prelude::*;
use rescatter::config::{
    ClassNames, MaskFolderConfig, OnError, SplitConfig, TransformConfig, load,
};
use rescatter::data::coco::Fault;
use rescatter::data::transforms::{Labels, Pipeline};
use rescatter::data::{Dataset, ImageFolder, MaskFolder, read_image, same_classes};
use serde::Serialize;

use super::AnyConfig;

/// Arguments of `rescatter data check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The config whose data is checked; without one, give `--images`, `--labels` and `--classes`.
    #[arg(required_unless_present = "images")]
    config: Option<PathBuf>,
    /// Changes to the config, `key.path=value`.
    overrides: Vec<String>,
    /// Folder of images.
    #[arg(
        long,
        value_name = "DIR",
        requires = "labels",
        requires = "classes",
        conflicts_with = "config"
    )]
    images: Option<PathBuf>,
    /// Folder of label PNGs.
    #[arg(long, value_name = "DIR", requires = "images")]
    labels: Option<PathBuf>,
    /// File with one class name per line.
    #[arg(long, value_name = "FILE", requires = "images")]
    classes: Option<PathBuf>,
    /// What replaces the image's extension in the label's name.
    #[arg(long, value_name = "SUFFIX", default_value = ".png", requires = "images")]
    label_suffix: String,
    /// Label 0 means "not labelled".
    #[arg(long, requires = "images")]
    reduce_zero_label: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found in one split.
#[derive(Debug, Default, Serialize)]
struct Report {
    split: String,
    images: usize,
    /// Shortest and longest clip, in frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<[usize; 2]>,
    /// Smallest and largest width and height.
    #[serde(skip_serializing_if = "Option::is_none")]
    widths: Option<[usize; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heights: Option<[usize; 2]>,
    classes: Vec<ClassCount>,
    /// Pixels (in detection crowds, in classification none) that count nowhere.
    ignored: u64,
    /// How often each kind of fault occurs in annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    faults: BTreeMap<Fault, usize>,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct ClassCount {
    name: String,
    /// Pixels in segmentation, objects in detection, images in classification, clips in video.
    count: u64,
    images: u64,
}

#[derive(Debug, Serialize)]
struct Problem {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl From<rescatter::Error> for Problem {
    fn from(error: rescatter::Error) -> Self {
        Self { message: error.to_string(), hint: error.hint().map(str::to_owned) }
    }
}

/// Problems that are printed one by one.
const SHOWN: usize = 20;

/// Runs `rescatter data check`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut reports = Vec::new();
    match (&args.config, single_split(args)) {
        (Some(path), _) => {
            let config: AnyConfig = load::load(path, &args.overrides)?;
            reports.push(check("train", &config.data.train));
            reports.push(check("val", &config.data.val));
            compare_classes(&mut reports);
        }
        (None, Some(split)) => reports.push(check("images", &split)),
        (None, None) => anyhow::bail!("give a config, or `--images`, `--labels` and `--classes`"),
    }
    let good = reports.iter().all(|report| report.problems.is_empty());
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "ok": good, "splits": reports }))?
        );
    } else {
        reports.iter().for_each(print);
        println!(
            "{}",
            if good { "nothing wrong was found" } else { "something is wrong, see above" }
        );
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn single_split(args: &Args) -> Option<SplitConfig> {
    let mask = MaskFolderConfig {
        images: args.images.clone()?,
        labels: args.labels.clone()?,
        label_suffix: args.label_suffix.clone(),
        classes: ClassNames::File(args.classes.clone()?),
        label_map: Default::default(),
        reduce_zero_label: args.reduce_zero_label,
        ignore_index: 255,
        on_error: OnError::Stop,
    };
    let transforms = vec![TransformConfig::Normalize { mean: [0.0; 3], std: [1.0; 3] }];
    Some(SplitConfig { ade20k: Some(mask), transforms, ..Default::default() })
}

fn compare_classes(reports: &mut [Report]) {
    let names =
        |report: &Report| report.classes.iter().map(|class| class.name.clone()).collect::<Vec<_>>();
    let [train, val] = reports else { return };
    let (a, b) = (names(train), names(val));
    // A split that could not be opened has said so already.
    if !a.is_empty()
        && !b.is_empty()
        && let Err(error) = same_classes(("the training split", &a), ("the validation split", &b))
    {
        val.problems.push(error.into());
    }
}

fn check(name: &str, split: &SplitConfig) -> Report {
    let mut report = Report { split: name.to_owned(), ..Default::default() };
    // Opening the split as training does finds what single files cannot show.
    let opened = match first_reader(split) {
        Reader::Classification => rescatter::data::classification(split).map(drop),
        Reader::Detection => rescatter::data::detection(split).map(drop),
        Reader::Video => rescatter::data::video(split).map(drop),
        Reader::Segmentation => rescatter::data::segmentation(split).map(drop),
    };
    let before = report.problems.len();
    walk(split, &mut report);
    if let (Err(error), true) = (opened, report.problems.len() == before) {
        report.problems.push(error.into());
    }
    report
}

enum Reader {
    Segmentation,
    Detection,
    Classification,
    Video,
}

fn first_reader(split: &SplitConfig) -> Reader {
    let first = split.concat.as_ref().and_then(|parts| parts.first());
    match (first, &split.coco, &split.image_folder) {
        (Some(first), ..) => first_reader(first),
        _ if split.video_list.is_some() => Reader::Video,
        (_, Some(_), _) => Reader::Detection,
        (_, _, Some(_)) => Reader::Classification,
        _ => Reader::Segmentation,
    }
}

fn walk(split: &SplitConfig, report: &mut Report) {
    for part in split.concat.iter().flatten() {
        walk(part, report);
    }
    let normalize = [TransformConfig::Normalize { mean: [0.0; 3], std: [1.0; 3] }];
    let pipeline = || Pipeline::new(&normalize, Labels::Transformed);
    if let Some(config) = split.ade20k.as_ref().or(split.coco_stuff.as_ref()) {
        // Every broken sample is reported, not only the first.
        let config = MaskFolderConfig { on_error: OnError::Skip, ..config.clone() };
        match pipeline().and_then(|pipeline| MaskFolder::new(&config, pipeline)) {
            Ok(set) => walk_masks(&set, report),
            Err(error) => report.problems.push(error.into()),
        }
    }
    if let Some(config) = &split.coco {
        match pipeline() {
            Ok(pipeline) => coco::walk(config, pipeline, report),
            Err(error) => report.problems.push(error.into()),
        }
    }
    if let Some(config) = &split.video_list {
        video::walk(config, report);
    }
    if let Some(config) = &split.image_folder {
        match pipeline().and_then(|pipeline| ImageFolder::new(config, pipeline)) {
            Ok(set) => walk_images(&set, report),
            Err(error) => report.problems.push(error.into()),
        }
    }
}

fn walk_masks(set: &MaskFolder, report: &mut Report) {
    let classes = set.classes();
    let read = |index: usize| {
        let (image, label) = set.read(index)?;
        let mut counts = vec![0u64; classes.len() + 1];
        for class in &label {
            counts[usize::from(*class).min(classes.len())] += 1;
        }
        Ok((counts, (image.width() as usize, image.height() as usize)))
    };
    let results: Vec<rescatter::Result<_>> = (0..set.len()).into_par_iter().map(read).collect();
    report.images += results.len();
    report.name_classes(classes);
    for result in results {
        match result {
            Ok((counts, size)) => {
                report.measure(size);
                for (class, count) in report.classes.iter_mut().zip(&counts) {
                    class.count += count;
                    class.images += u64::from(*count > 0);
                }
                report.ignored += counts[classes.len()];
            }
            Err(error) => report.problems.push(error.into()),
        }
    }
}

fn walk_images(set: &ImageFolder, report: &mut Report) {
    let read = |index: usize| {
        read_image(set.path(index)).map(|image| (image.width() as usize, image.height() as usize))
    };
    let results: Vec<rescatter::Result<_>> = (0..set.len()).into_par_iter().map(read).collect();
    report.images += results.len();
    report.name_classes(set.classes());
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(size) => {
                report.measure(size);
                let class = &mut report.classes[set.class(index) as usize];
                class.count += 1;
                class.images += 1;
            }
            Err(error) => report.problems.push(error.into()),
        }
    }
}

impl Report {
    fn name_classes(&mut self, names: &[String]) {
        if self.classes.is_empty() {
            self.classes = names
                .iter()
                .map(|name| ClassCount { name: name.clone(), count: 0, images: 0 })
                .collect();
        }
    }

    fn measure(&mut self, (width, height): (usize, usize)) {
        grow(&mut self.widths, width);
        grow(&mut self.heights, height);
    }
}

fn grow(range: &mut Option<[usize; 2]>, value: usize) {
    let [low, high] = range.unwrap_or([value, value]);
    *range = Some([low.min(value), high.max(value)]);
}

fn print(report: &Report) {
    let span =
        |range: Option<[usize; 2]>| range.map_or("-".into(), |[low, high]| format!("{low}-{high}"));
    let frames =
        report.frames.map_or(String::new(), |frames| format!(" of {} frames", span(Some(frames))));
    println!(
        "{}: {} {}{frames}, width {}, height {}",
        report.split,
        report.images,
        if report.frames.is_some() { "clips" } else { "images" },
        span(report.widths),
        span(report.heights)
    );
    let total = report.classes.iter().map(|class| class.count).sum::<u64>() + report.ignored;
    let share = |count: u64| 100.0 * count as f64 / total.max(1) as f64;
    for (number, class) in report.classes.iter().enumerate() {
        println!(
            "  {number:>4} {:<24} {:>6.2} %  in {} images",
            class.name,
            share(class.count),
            class.images
        );
    }
    if report.ignored > 0 {
        println!("       {:<24} {:>6.2} %", "(ignored)", share(report.ignored));
    }
    let unseen: Vec<_> = report
        .classes
        .iter()
        .filter(|class| class.images == 0)
        .map(|class| class.name.as_str())
        .collect();
    if !unseen.is_empty() {
        println!("  note: never labelled: {}", unseen.join(", "));
    }
    for (fault, count) in &report.faults {
        println!("  {count} × {}", fault.name());
    }
    for problem in report.problems.iter().take(SHOWN) {
        println!("  problem: {}", problem.message);
        if let Some(hint) = &problem.hint {
            println!("           hint: {hint}");
        }
    }
    if report.problems.len() > SHOWN {
        println!(
            "  … and {} more problems (all of them with --json)",
            report.problems.len() - SHOWN
        );
    }
}
