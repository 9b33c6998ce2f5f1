//! `rescatter eval`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use rescatter::data::coco::Detection;
use rescatter::engine::Run;
use rescatter_heads::TaskModel;
use rescatter_heads::evaluation::{Evaluation, Scores};
use rescatter_heads::run::Trained;

use crate::trained::Checkpoint;

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
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let trained =
        Trained::open(&args.target, args.checkpoint.into(), &args.overrides)?.calibrated()?;
    let terminal = std::io::stderr().is_terminal();
    let progress = |done: usize, all: usize| {
        if terminal {
            eprint!("\r{done}/{all} images{}", if done == all { "\n" } else { "" });
        }
    };
    let found = trained.model.evaluate(&trained.config, &trained.classes, &progress)?;
    let own = || args.target.is_dir().then(|| Run::open(&args.target)).transpose();
    let detections = match &args.detections {
        Some(path) => Some(path.clone()),
        None => own()?.map(|run| run.detections_path()),
    };
    if let (Some(path), TaskModel::Detection(_)) = (detections, &trained.model) {
        Detection::write_all(&path, &found.detections)?;
        tracing::info!("{} detections in {}", found.detections.len(), path.display());
    }
    if let (Some(run), TaskModel::Video(_)) = (own()?, &trained.model) {
        found.write_videos(&run.videos_path())?;
        tracing::info!("{} videos in {}", found.videos.len(), run.videos_path().display());
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        print(&found, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line per class, then the summary.
fn print(found: &Evaluation, out: &mut impl Write) -> Result<()> {
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
            writeln!(out, "{:<28} {:>8}", "class", "top1")?;
            for (class, top1) in found.classes.iter().zip(&scores.per_class) {
                writeln!(out, "{class:<28} {:>8}", percent(*top1))?;
            }
        }
    }
    writeln!(out)?;
    for (name, value) in found.figures() {
        writeln!(out, "{name:<28} {:>8}", percent(Some(value)))?;
    }
    if !found.kept_per_layer.is_empty() {
        let layers: Vec<_> =
            found.kept_per_layer.iter().map(|share| percent(Some(*share))).collect();
        writeln!(out, "{:<28} {}", "kept per layer", layers.join(" "))?;
    }
    writeln!(out, "{:<28} {:>8}", "images", found.images)?;
    writeln!(out, "{:<28} {:>8.1}", "ms per image", 1e3 * found.seconds_per_image)?;
    for (message, times) in &found.skipped {
        writeln!(out, "left out ({times}×): {message}")?;
    }
    Ok(())
}
