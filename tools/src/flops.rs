//! `rescatter flops`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use candle_core::Device;
use rescatter::Error;
use rescatter::config::{EvalMode, Inference, SplitConfig, TransformConfig, Variant};
use rescatter::dispatch::flops::FlopCount;
use rescatter::model::TrainedParts;
use rescatter_heads::extension::Base;
use rescatter_heads::flops::{Pass, count};
use rescatter_heads::{Config, TaskModel, task};
use serde_json::json;

/// Arguments of `rescatter flops`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The config.
    config: PathBuf,
    /// Changes to it, `key.path=value`.
    overrides: Vec<String>,
    /// Height and width of one image, e.g. 512x512; by default the window of the evaluation or the crop of the training.
    #[arg(long, value_name = "HxW")]
    size: Option<String>,
    /// Share of the patch tokens that are kept; by default the share that the config aims at.
    #[arg(long)]
    kept: Option<f64>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `rescatter flops`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut config: Config = rescatter::config::load::load(&args.config, &args.overrides)?;
    let base = Base::open(&mut config)?;
    let size = match &args.size {
        Some(text) => parse_size(text)?,
        None => default_size(&config)?,
    };
    let kept = args.kept.unwrap_or(default_kept(&config));
    if !(0.0..=1.0).contains(&kept) {
        bail!("--kept is a share between 0 and 1, got {kept}");
    }
    let classes = task::class_names(&config)?.len();
    let count = count(&config, Pass { size, kept: &[kept], classes })?;
    let trained = trained(config, base.as_ref(), classes)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        print_json(&mut out, &count, (size, kept), trained)?
    } else {
        print_table(&mut out, &count, size, kept)?;
        writeln!(out, "{trained}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What training would change.
fn trained(mut config: Config, base: Option<&Base>, classes: usize) -> Result<TrainedParts> {
    config.backbone.weights = None;
    let earlier = base.map_or(&[][..], Base::earlier);
    let (model, _) = TaskModel::added_to(earlier, &config, classes, &Device::Cpu)?;
    Ok(TrainedParts::of(model.params()))
}

fn parse_size(text: &str) -> Result<(usize, usize)> {
    let sides = text.split_once(['x', '×']).map(|(h, w)| (h.parse::<usize>(), w.parse::<usize>()));
    match sides {
        Some((Ok(height), Ok(width))) if height > 0 && width > 0 => Ok((height, width)),
        _ => bail!("--size is HEIGHTxWIDTH in pixels, e.g. 512x512, got `{text}`"),
    }
}

/// The window of the evaluation, else the size that images of the evaluation are brought to, else that training crops to.
pub(crate) fn default_size(config: &Config) -> Result<(usize, usize)> {
    if let EvalMode::Slide { crop, .. } = config.eval.mode {
        return Ok((crop, crop));
    }
    let fixed = |transform: &TransformConfig| match transform {
        TransformConfig::RandomCrop { size, .. }
        | TransformConfig::RandomResizedCrop { size, .. }
        | TransformConfig::CenterCrop { size }
        | TransformConfig::Resize { size: Some(size), keep_ratio: false, .. } => {
            Some((size[0], size[1]))
        }
        _ => None,
    };
    // The last one decides.
    let of = |split: &SplitConfig| split.transforms.iter().rev().find_map(fixed);
    Ok(of(&config.data.val).or_else(|| of(&config.data.train)).ok_or_else(|| {
        Error::usage("the config fixes no image size").with_hint("name one: --size 512x512")
    })?)
}

fn default_kept(config: &Config) -> f64 {
    match (config.dispatch.variant, config.dispatch.inference) {
        (Variant::None, _) => 1.0,
        (_, Inference::Threshold) => config.dispatch.target_rate,
        (_, Inference::TopK(share) | Inference::Calibrated(share)) => share,
    }
}

fn print_table(
    out: &mut impl Write,
    count: &FlopCount,
    (height, width): (usize, usize),
    kept: f64,
) -> std::io::Result<()> {
    writeln!(out, "{height}×{width} pixels, {:.1} % of the tokens kept", 100.0 * kept)?;
    writeln!(out, "{:<36} {:>15} {:>15}", "", "GMACs nominal", "GMACs executed")?;
    for part in &count.parts {
        writeln!(
            out,
            "{:<36} {:>15.3} {:>15.3}",
            part.name,
            part.nominal / 1e9,
            part.executed / 1e9
        )?;
    }
    writeln!(
        out,
        "{:<36} {:>15.3} {:>15.3}",
        "total",
        count.nominal_gmacs(),
        count.executed_gmacs()
    )
}

fn print_json(
    out: &mut impl Write,
    count: &FlopCount,
    (size, kept): ((usize, usize), f64),
    trained: TrainedParts,
) -> std::io::Result<()> {
    let part = |part: &rescatter::dispatch::flops::Part| {
        json!({
            "name": part.name,
            "nominal_gmacs": part.nominal / 1e9,
            "executed_gmacs": part.executed / 1e9,
        })
    };
    let report = json!({
        "size": [size.0, size.1],
        "kept": kept,
        "nominal_gmacs": count.nominal_gmacs(),
        "executed_gmacs": count.executed_gmacs(),
        "trained": trained,
        "parts": count.parts.iter().map(part).collect::<Vec<_>>(),
    });
    writeln!(out, "{report:#}")
}
