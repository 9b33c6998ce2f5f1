//! `rescatter eval`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use rescatter::config::Variant;
use rescatter::data::coco::Detection;
use rescatter::engine::Run;
use rescatter::fs;
use rescatter::ops::in_precision;
use rescatter::world::World;
use rescatter_heads::TaskModel;
use rescatter_heads::evaluation::{Evaluation, Scores};
use rescatter_heads::kept::per_site;
use rescatter_heads::run::Trained;

use crate::trained::{Checkpoint, open};

/// Arguments of `rescatter eval`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a run, an exported file, or a config with the weights that it names.
    #[arg(value_name = "RUN|CONFIG")]
    target: PathBuf,
    /// Changes to the config, e.g. another set: `data.val.ade20k.images=FOLDER data.val.ade20k.labels=FOLDER`.
    #[arg(value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Which checkpoint of the run.
    #[arg(long, default_value = "best")]
    checkpoint: Checkpoint,
    /// Where a detector's findings go, in COCO's results format; by default `coco_instances_results.json` in the run's folder.
    #[arg(long, value_name = "FILE")]
    detections: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `rescatter eval`.
pub(crate) fn run(args: Args, world: World) -> Result<ExitCode> {
    if let (Some(path), true) = (&args.detections, world.leads()) {
        fs::check_writable(path)?;
    }
    let trained = open(&args.target, args.checkpoint, &args.overrides)?.calibrated()?;
    let terminal = std::io::stderr().is_terminal();
    let progress = |done: usize, all: usize| {
        if terminal && world.leads() {
            eprint!("\r{done}/{all} images{}", if done == all { "\n" } else { "" });
        }
    };
    let Trained { config, model, classes, .. } = &trained;
    let found =
        in_precision(config.train.precision, || model.evaluate(config, classes, world, &progress))?;
    if !world.leads() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        print(&found, trained.config.dispatch.variant, &mut out)?;
    }
    write_findings(&args, &trained.model, &found)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes what was found in each sample, where the task has such a file. That it cannot be written beside a run is no
/// failure of the evaluation.
fn write_findings(args: &Args, model: &TaskModel, found: &Evaluation) -> Result<()> {
    let run = args.target.is_dir().then(|| Run::open(&args.target)).transpose()?;
    let path = match (model, &args.detections, run) {
        (TaskModel::Detection(_), Some(path), _) => path.clone(),
        (TaskModel::Detection(_), None, Some(run)) => run.detections_path(),
        (TaskModel::Video(_), _, Some(run)) => run.videos_path(),
        _ => return Ok(()),
    };
    let (written, what) = match model {
        TaskModel::Video(_) => {
            (found.write_videos(&path), format!("{} videos", found.videos.len()))
        }
        _ => {
            let written = Detection::write_all(&path, &found.detections);
            (written, format!("{} detections", found.detections.len()))
        }
    };
    match written {
        Ok(()) => tracing::info!("{what} in {}", path.display()),
        Err(error) if args.detections.as_ref() == Some(&path) => return Err(error.into()),
        Err(error) => tracing::warn!("{what} are not kept: {error}"),
    }
    Ok(())
}

/// A line per class, then the summary.
fn print(found: &Evaluation, variant: Variant, out: &mut impl Write) -> Result<()> {
    let percent =
        |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.2}", 100.0 * share));
    match &found.scores {
        Scores::Segmentation(scores) => {
            writeln!(out, "{:<28} {:>8} {:>8}", "class", "IoU", "Acc")?;
            for ((class, iou), acc) in found.classes.iter().zip(&scores.IoU).zip(&scores.Acc) {
                writeln!(out, "{class:<28} {:>8} {:>8}", percent(*iou), percent(*acc))?;
            }
        }
        Scores::Detection(scores) => {
            // −1 where the set has no object of the category.
            let known = |score: f64| percent(Some(score).filter(|score| *score >= 0.0));
            writeln!(out, "{:<28} {:>8} {:>8}", "category", "box AP", "mask AP")?;
            for (i, category) in scores.bbox.per_category.iter().enumerate() {
                let mask = scores.segm.as_ref().and_then(|segm| segm.per_category.get(i));
                let mask = mask.map_or("-".into(), |category| known(category.ap));
                writeln!(out, "{:<28} {:>8} {mask:>8}", category.name, known(category.ap))?;
            }
        }
        Scores::Classification(scores) => {
            writeln!(out, "{:<28} {:>8} {:>8}  mostly mistaken for", "class", "images", "top1")?;
            for (own, class) in found.classes.iter().enumerate() {
                let guesses = &scores.confusion[own];
                let wrong = guesses.iter().enumerate().filter(|(guess, _)| *guess != own);
                let worst = wrong.max_by_key(|(_, count)| **count).filter(|(_, count)| **count > 0);
                let worst = worst.map(|(guess, n)| format!("{} ({n})", found.classes[guess]));
                let (images, top1) = (guesses.iter().sum::<u64>(), percent(scores.per_class[own]));
                writeln!(out, "{class:<28} {images:>8} {top1:>8}  {}", worst.unwrap_or_default())?;
            }
        }
    }
    writeln!(out)?;
    for (name, value) in found.figures() {
        writeln!(out, "{name:<28} {:>8}", percent(Some(value)))?;
    }
    for (what, shares) in per_site(variant, &found.kept_per_layer) {
        let layers: Vec<_> = shares.iter().map(|share| percent(Some(*share))).collect();
        writeln!(out, "{what:<28} {}", layers.join(" "))?;
    }
    writeln!(out, "{:<28} {:>8}", "images", found.images)?;
    writeln!(out, "{:<28} {:>8.1}", "ms per image", 1e3 * found.seconds_per_image)?;
    for (message, times) in &found.skipped {
        writeln!(out, "left out ({times}×): {message}")?;
    }
    Ok(())
}
