//! `rescatter score`: metrics alone, on files that any model wrote.

mod coco;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rescatter::config::{ClassNames, MaskFolderConfig, OnError};
use rescatter::data::{LabelMap, LabelRule, MAX_CLASSES, list_images, read_label};
use rescatter::metrics::{ConfusionMatrix, SegmentationScores};
use rescatter::{Error, Result};

/// Arguments of `rescatter score`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    metric: Metric,
}

#[derive(clap::Subcommand)]
enum Metric {
    /// Mean intersection over union of two folders of PNGs with equal names.
    Miou(MiouArgs),
    /// COCO's average precision of a results file, boxes or masks.
    Coco(coco::Args),
}

#[derive(clap::Args)]
struct MiouArgs {
    /// Folder of label PNGs.
    #[arg(long, value_name = "DIR")]
    labels: PathBuf,
    /// Folder of predicted PNGs: class numbers from 0, at the labels' sizes.
    #[arg(long, value_name = "DIR")]
    predictions: PathBuf,
    /// K.
    #[arg(long, value_name = "N")]
    num_classes: usize,
    /// Label of the pixels that are left out.
    #[arg(long, value_name = "N", default_value_t = 255)]
    ignore_index: u32,
    /// Label 0 means "not labelled", the classes count from 1 in the labels (in the predictions from 0).
    #[arg(long)]
    reduce_zero_label: bool,
    /// Print JSON: mIoU, aAcc, mAcc, IoU, Acc as fractions, null for a class that never occurs.
    #[arg(long)]
    json: bool,
}

/// Runs `rescatter score`.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.metric {
        Metric::Miou(args) => run_miou(&args)?,
        Metric::Coco(args) => coco::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_miou(args: &MiouArgs) -> anyhow::Result<()> {
    let scores = score(args)?;
    if args.json {
        println!("{}", serde_json::to_string(&scores)?);
    } else {
        print_table(&scores);
    }
    Ok(())
}

fn score(args: &MiouArgs) -> Result<SegmentationScores> {
    if args.num_classes == 0 {
        return Err(Error::usage("`--num-classes` is 0")
            .with_hint("give the number of classes, without the ignored label"));
    }
    if args.num_classes > MAX_CLASSES {
        let reason = format!("`--num-classes` is {}", args.num_classes);
        return Err(Error::usage(reason).with_hint(format!(
            "labels are 16-bit numbers: there are at most {MAX_CLASSES} classes"
        )));
    }
    let names = paired_names(&args.labels, &args.predictions)?;
    let rule = rule(args)?;
    let mut matrix = ConfusionMatrix::new(args.num_classes, args.ignore_index);
    for name in &names {
        let (label_path, prediction_path) = (args.labels.join(name), args.predictions.join(name));
        let mut label = read_label(&label_path)?;
        rule.apply(&mut label, &label_path)?;
        let prediction = read_label(&prediction_path)?;
        check_prediction(&prediction, args, &prediction_path)?;
        matrix.add(&label, &prediction).map_err(|e| Error::file(&prediction_path, e))?;
    }
    Ok(matrix.scores())
}

/// The names that both folders hold; neither may hold another.
fn paired_names(labels: &Path, predictions: &Path) -> Result<Vec<PathBuf>> {
    let pngs = |folder: &Path| -> Result<BTreeSet<PathBuf>> {
        Ok(list_images(folder)?.into_iter().collect())
    };
    let (given, predicted) = (pngs(labels)?, pngs(predictions)?);
    let complain = |path: PathBuf, what: &str, number: usize| {
        Err(Error::file(path, format!("{what} ({number} in all)"))
            .with_hint("both folders must hold the same file names"))
    };
    let missing: Vec<_> = given.difference(&predicted).collect();
    if let Some(name) = missing.first() {
        return complain(
            predictions.join(name),
            "there is no prediction for this label",
            missing.len(),
        );
    }
    let extra: Vec<_> = predicted.difference(&given).collect();
    if let Some(name) = extra.first() {
        return complain(predictions.join(name), "this prediction has no label", extra.len());
    }
    Ok(given.into_iter().collect())
}

fn rule(args: &MiouArgs) -> Result<LabelRule> {
    let config = MaskFolderConfig {
        images: PathBuf::new(),
        labels: PathBuf::new(),
        label_suffix: String::new(),
        classes: ClassNames::List(Vec::new()),
        label_map: Default::default(),
        reduce_zero_label: args.reduce_zero_label,
        ignore_index: args.ignore_index,
        on_error: OnError::Stop,
    };
    let classes: Vec<String> = (0..args.num_classes).map(|class| class.to_string()).collect();
    LabelRule::new(&config, &classes)
}

/// A prediction may hold the ignore index ("no class", counted as wrong) but no other unknown number.
fn check_prediction(prediction: &LabelMap, args: &MiouArgs, path: &Path) -> Result<()> {
    let known =
        |value: u16| usize::from(value) < args.num_classes || u32::from(value) == args.ignore_index;
    match prediction.indexed_iter().find(|(_, value)| !known(**value)) {
        None => Ok(()),
        Some(((row, column), value)) => {
            let reason = format!(
                "predicted class {value} at row {row}, column {column}, but there are {} classes",
                args.num_classes
            );
            Err(Error::file(path, reason)
                .with_hint("predictions count from 0 also where the labels are reduced"))
        }
    }
}

fn print_table(scores: &SegmentationScores) {
    let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
    println!(
        "mIoU {}  mAcc {}  aAcc {}",
        percent(scores.mIoU),
        percent(scores.mAcc),
        percent(scores.aAcc)
    );
    println!("{:>6} {:>8} {:>8}", "class", "IoU", "Acc");
    for (class, (iou, acc)) in scores.IoU.iter().zip(&scores.Acc).enumerate() {
        println!("{class:>6} {:>8} {:>8}", percent(*iou), percent(*acc));
    }
}
