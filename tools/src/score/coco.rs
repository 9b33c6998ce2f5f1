//! `rescatter score coco`: COCO's average precision of anyone's results file.

use std::path::PathBuf;
use std::time::Instant;

use rescatter::Result;
use rescatter::data::coco::{Annotations, Detection};
use rescatter::metrics::coco::{Breakdown, CocoScores, Evaluated, IouType, check};
use serde_json::{Map, Value, json};

/// Arguments of `rescatter score coco`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// COCO's annotations, `instances_*.json`.
    #[arg(long, value_name = "FILE")]
    gt: PathBuf,
    /// A results file in COCO's format.
    #[arg(long, value_name = "FILE")]
    dt: PathBuf,
    /// Boxes or masks.
    #[arg(long, value_name = "KIND")]
    iou_type: Kind,
    /// Print what AP at IoU 0.5 is lost to, as TIDE defines it (arXiv 2008.08115).
    #[arg(long)]
    breakdown: bool,
    /// Print JSON: `stats`, the 12 numbers in pycocotools' order, and `per_category` by the annotations' ids; −1 where
    /// nothing is annotated.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Bbox,
    Segm,
}

/// Runs `rescatter score coco`.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let kind = match args.iou_type {
        Kind::Bbox => IouType::Bbox,
        Kind::Segm => IouType::Segm,
    };
    let evaluated = evaluate(args, kind)?;
    let scores = evaluated.scores()?;
    let breakdown = args.breakdown.then(|| evaluated.breakdown()).transpose()?;
    if args.json {
        println!("{}", serde_json::to_string(&as_json(kind, &scores, breakdown.as_ref()))?);
        return Ok(());
    }
    print_stats(&scores);
    print_categories(&scores);
    if let Some(breakdown) = &breakdown {
        print_breakdown(breakdown);
    }
    Ok(())
}

fn evaluate(args: &Args, kind: IouType) -> Result<Evaluated> {
    let start = Instant::now();
    let truth = Annotations::read(&args.gt)?;
    // Before the results are held against it.
    check(&truth, kind)?;
    let detections = Detection::read_all(&args.dt, &truth)?;
    let (images, found) = (truth.images.len(), detections.len());
    let evaluated = Evaluated::new(&truth, detections, kind)?;
    let (all, evaluate) = (start.elapsed().as_secs_f64(), evaluated.elapsed.as_secs_f64());
    tracing::debug!(
        "{images} images, {found} detections: load_s={:.4} evaluate_s={evaluate:.4}",
        all - evaluate
    );
    Ok(evaluated)
}

fn as_json(kind: IouType, scores: &CocoScores, breakdown: Option<&Breakdown>) -> Value {
    let per_category: Map<String, Value> = scores
        .per_category
        .iter()
        .map(|c| (c.id.to_string(), json!({ "name": c.name, "AP": c.ap, "AP50": c.ap50 })))
        .collect();
    let mut value = json!({
        "iou_type": kind.name(),
        "stats": scores.stats,
        "per_category": per_category,
    });
    if let Some(breakdown) = breakdown {
        value["breakdown"] = json!(breakdown);
    }
    value
}

/// The twelve numbers as pycocotools prints them.
fn print_stats(scores: &CocoScores) {
    for (number, value) in scores.stats.iter().enumerate() {
        let title = if number < 6 { "Average Precision  (AP)" } else { "Average Recall     (AR)" };
        let iou = match number {
            1 => "0.50",
            2 => "0.75",
            _ => "0.50:0.95",
        };
        let area = match number % 6 {
            3 => "small",
            4 => "medium",
            5 => "large",
            _ => "all",
        };
        let most = match number {
            6 => 1,
            7 => 10,
            _ => 100,
        };
        println!(" {title} @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:0.3}");
    }
}

fn print_categories(scores: &CocoScores) {
    let percent = |ap: f64| if ap < 0.0 { "-".to_owned() } else { format!("{:.1}", 100.0 * ap) };
    println!("{:>8} {:>6} {:>6}  category", "id", "AP", "AP50");
    for category in &scores.per_category {
        let (ap, ap50) = (percent(category.ap), percent(category.ap50));
        println!("{:>8} {ap:>6} {ap50:>6}  {}", category.id, category.name);
    }
}

fn print_breakdown(breakdown: &Breakdown) {
    println!(
        "AP50 {:.2}; repairing all errors of one kind alone would add:",
        100.0 * breakdown.ap50
    );
    for share in &breakdown.errors {
        let name = format!("{:?}", share.kind).to_lowercase();
        println!("  {name:<16} {:>6.2}  ({} of them)", 100.0 * share.delta_ap, share.count);
    }
    println!("  {:<16} {:>6.2}", "false positives", 100.0 * breakdown.false_positives);
    println!("  {:<16} {:>6.2}", "false negatives", 100.0 * breakdown.false_negatives);
}
