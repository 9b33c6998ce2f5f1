//! `rescatter verify`: runs reference files (weights, inputs, expected outputs and gradients) through the models.
//!
//! One file per family of kinds; each computes a file's outputs by name, and the comparison is here.

mod boxes;
mod cascade;
mod fixture;
mod heads;
mod maps;
mod optim;
mod rcnn;
mod regions;
mod temporal;
mod tuning;
mod vit;
mod vitdet;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use fixture::Fixture;

/// Arguments of `rescatter verify`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Reference files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where they are computed: `auto`, `cpu` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// What a family computed: tensors by the names of the file, `output.*` and `grad.*`.
type Outputs = BTreeMap<String, Tensor>;

/// Computes what the file expects; `None` for a kind that is not supported yet.
fn compute(fixture: &Fixture) -> Result<Option<Outputs>> {
    match fixture.kind.as_str() {
        "dyt_vit" | "tome_vit" => vit::evaluation(fixture),
        "dyt_vit_train" => vit::training(fixture),
        "dense_features" => vit::dense_features(fixture),
        "rlrr_vit" | "lora_vit" | "ssf_vit" | "ia3_vit" | "bitfit_vit" | "vpt_vit" => {
            tuning::classifier(fixture)
        }
        "memory_vit" => tuning::memory(fixture),
        "vitdet" => vitdet::vitdet(fixture),
        "optim" => optim::optim(fixture),
        "uper_head" => heads::evaluation(fixture),
        "uper_head_train" => heads::training(fixture),
        "resize" => maps::resize(fixture),
        "simple_fpn" => maps::simple_fpn(fixture),
        "roi_align" => regions::align(fixture),
        "multilevel_roi_align" => regions::multilevel(fixture),
        "level_assignment" => regions::levels(fixture),
        "paste_masks" => regions::paste_masks(fixture),
        "nms" => boxes::plain_nms(fixture),
        "batched_nms" => boxes::grouped_nms(fixture),
        "soft_nms" => boxes::decayed_nms(fixture),
        "conv_box_head" => cascade::conv_box_head(fixture),
        "norm_mask_head" => cascade::norm_mask_head(fixture),
        "cascade_heads" => cascade::heads(fixture),
        "cascade_losses" => cascade::losses(fixture),
        "box_coder" => boxes::coder(fixture),
        "anchors" => boxes::anchors(fixture),
        "match" => boxes::matches(fixture),
        "mask_rcnn_heads" => rcnn::heads(fixture),
        "mask_rcnn_losses" => rcnn::losses(fixture),
        "temporal_head" => temporal::head(fixture),
        _ => Ok(None),
    }
}

/// Runs `rescatter verify`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let device = rescatter_heads::run::device(&args.device)?;
    let mut reports = Vec::new();
    for path in &args.files {
        let report = verify(path, &device);
        if !args.json {
            report.print(&mut out)?;
        }
        reports.push(report);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&reports)?)?;
    }
    Ok(if reports.iter().all(|report| report.passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One file's result.
#[derive(Serialize)]
struct Report {
    file: String,
    kind: String,
    passed: bool,
    /// Why nothing was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    tensors: Vec<Comparison>,
}

/// One tensor's result.
#[derive(Serialize)]
struct Comparison {
    name: String,
    /// Largest |difference|; null where it is not a number.
    difference: f64,
    tolerance: f64,
    passed: bool,
}

fn verify(path: &Path, device: &Device) -> Report {
    let file = path.display().to_string();
    let (kind, result) = match Fixture::read(path, device) {
        Ok(fixture) => (fixture.kind.clone(), compare_all(&fixture)),
        Err(error) => (String::new(), Err(error)),
    };
    match result {
        Ok(tensors) => {
            Report { file, kind, passed: tensors.iter().all(|t| t.passed), error: None, tensors }
        }
        Err(error) => Report {
            file,
            kind,
            passed: false,
            error: Some(format!("{error:#}")),
            tensors: Vec::new(),
        },
    }
}

fn compare_all(fixture: &Fixture) -> Result<Vec<Comparison>> {
    let Some(computed) = compute(fixture)? else { anyhow::bail!("not supported yet") };
    ensure!(!fixture.tolerances.is_empty(), "the file expects nothing");
    let compare = |(name, tolerance): (&String, &f64)| {
        let computed = computed.get(name).with_context(|| format!("`{name}` was not computed"))?;
        let difference =
            difference(computed, fixture.get(name)?).with_context(|| format!("in `{name}`"))?;
        // Written so that a difference that is not a number fails.
        Ok(Comparison {
            name: name.clone(),
            difference,
            tolerance: *tolerance,
            passed: difference <= *tolerance,
        })
    };
    fixture.tolerances.iter().map(compare).collect()
}

/// The largest |a − b|; not a number as soon as one element is none.
fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    ensure!(a.dims() == b.dims(), "shape {:?} instead of {:?}", a.dims(), b.dims());
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let largest = |most: f64, d: f64| if d.is_nan() || d > most { d } else { most };
    let pairs = values(a)?.into_iter().zip(values(b)?);
    Ok(pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, d| if most.is_nan() { most } else { largest(most, d) }))
}

impl Report {
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        for Comparison { name, difference, tolerance, passed } in &self.tensors {
            let verdict = if *passed { "ok" } else { "FAILED" };
            writeln!(out, "  {name:<44} {difference:9.2e}  tolerance {tolerance:8.2e}  {verdict}")?;
        }
        let verdict = if self.passed { "ok" } else { "FAILED" };
        match &self.error {
            Some(error) => writeln!(out, "{} ({}): {verdict}: {error}", self.file, self.kind),
            None => {
                let share =
                    self.tensors.iter().map(|t| t.difference / t.tolerance.max(f64::MIN_POSITIVE));
                let worst = 100.0 * share.fold(0.0, f64::max);
                let count = self.tensors.len();
                writeln!(
                    out,
                    "{} ({}): {verdict}: {count} tensors, worst {worst:.1} % of its tolerance",
                    self.file, self.kind
                )
            }
        }
    }
}
