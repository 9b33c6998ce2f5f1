//! `rescatter weights`: look into checkpoints, convert them, export, merge or prune a run, and list what can be loaded.

mod export;
mod inspect;
mod list;
mod merge;
mod prune;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use candle_core::DType;
use rescatter::weights::names::to_timm;
use rescatter::weights::{File, checkpoint, sha256};
use rescatter::{Error, Result};

/// Arguments of `rescatter weights`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show the tensors of a checkpoint of any supported format, and which model they belong to.
    Inspect(inspect::Args),
    /// Write a checkpoint of any supported format as safetensors.
    Convert(ConvertArgs),
    /// Write a run as one file for deployment: frozen and trained weights, config and thresholds.
    Export(export::Args),
    /// Fold LoRA, RLRR, SSF and (IA)³ into plain weights, prove that nothing changed, and write one file for deployment.
    Merge(export::Args),
    /// Export a run without the parts of blocks that its images never activate, and say what that saves.
    Prune(prune::Args),
    /// List the pretrained checkpoints that can be loaded, and where they are published.
    List(list::Args),
}

#[derive(clap::Args)]
struct ConvertArgs {
    /// A safetensors, PyTorch (.pth, .pt, .bin) or NumPy (.npz) file.
    file: PathBuf,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Element type of the floating-point tensors; without it they keep their own.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<FloatType>,
    /// Rename the tensors.
    #[arg(long, value_name = "NAMES")]
    to: Option<Names>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Names {
    /// timm's vision transformer.
    Timm,
}

/// Runs `rescatter weights`.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Inspect(args) => inspect::run(&args)?,
        Command::Convert(args) => convert(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Merge(args) => merge::run(&args)?,
        Command::Prune(args) => prune::run(&args)?,
        Command::List(args) => list::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let file = File::read(&args.file)?;
    let mut metadata = file.metadata;
    metadata.insert(
        "source".into(),
        args.file.file_name().unwrap_or_default().to_string_lossy().into(),
    );
    metadata.insert("source_sha256".into(), sha256(&args.file)?);
    let (mut tensors, mut ignored) = (file.tensors, vec![]);
    if let Some(Names::Timm) = args.to {
        let renamed = to_timm(&tensors).map_err(|error| Error::file(&args.file, error))?;
        metadata.insert("source_names".into(), renamed.map.to_string());
        (tensors, ignored) = (renamed.tensors, renamed.ignored);
    }
    if let Some(wanted) = args.dtype {
        for tensor in tensors.values_mut().filter(|tensor| tensor.dtype().is_float()) {
            *tensor = tensor.to_dtype(wanted.dtype())?;
        }
    }
    checkpoint::write(&args.output, &tensors, &metadata)?;
    let left_out = if ignored.is_empty() {
        String::new()
    } else {
        format!(", left out: {}", ignored.join(", "))
    };
    eprintln!("{}: {} tensors{left_out}", args.output.display(), tensors.len());
    Ok(())
}

/// How many tensors have each element type, e.g. `F32: 150`.
fn type_counts(tensors: &checkpoint::Tensors) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for tensor in tensors.values() {
        *counts.entry(tensor.dtype().as_str()).or_default() += 1;
    }
    counts
}
