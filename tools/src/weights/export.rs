//! `rescatter weights export`.

use std::path::{Path, PathBuf};

use rescatter::Result;
use rescatter::config::{Inference, load};
use rescatter::engine::Run;
use rescatter::engine::checkpoint::{Checkpoint, Meta, Thresholds, export};
use rescatter_heads::run::Which;
use rescatter_heads::{Config, TaskModel, Trained};

/// Arguments of `rescatter weights export` and `merge`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder of a run, or an exported file.
    pub(super) run: PathBuf,
    /// The safetensors file to write; `eval` and `predict` take it in place of the run.
    #[arg(long, value_name = "FILE")]
    pub(super) output: PathBuf,
    /// Which checkpoint of the run.
    #[arg(long, value_name = "WHICH", default_value = "best")]
    pub(super) checkpoint: Choice,
}

/// The value of `--checkpoint`.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum Choice {
    Best,
    Last,
}

impl From<Choice> for Which {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Best => Self::Best,
            Choice::Last => Self::Last,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let which = args.checkpoint.into();
    // Averages take the place of the weights, and thresholds that the checkpoint lacks are calibrated.
    let trained = Trained::open(&args.run, which, &[])?.calibrated()?;
    let meta = deployed(&trained.config, &trained.model, known(&args.run, which)?)?;
    export(&args.output, trained.model.params(), &meta)?;
    let numbers: usize = trained.model.params().all().iter().map(|(_, p)| p.var.elem_count()).sum();
    eprintln!("{}: {numbers} parameters after {} steps", args.output.display(), trained.step);
    Ok(())
}

/// What the checkpoint of a run, or an exported file, says of itself.
pub(super) fn known(run: &Path, which: Which) -> Result<Meta> {
    if run.is_file() {
        return Ok(Checkpoint::read(run)?.meta);
    }
    let run = Run::open(run)?;
    let path = match which {
        Which::Best => run.best_path(),
        Which::Last => run.last_path(),
    };
    Ok(Checkpoint::read(&path)?.meta)
}

/// The metadata without what only this machine knows, with the thresholds that the model runs with.
pub(super) fn deployed(config: &Config, model: &TaskModel, mut meta: Meta) -> Result<Meta> {
    let mut config = config.clone();
    config.backbone.weights = None;
    meta.config = load::to_yaml(&config)?;
    if let (Inference::Calibrated(share), Some(values)) =
        (config.dispatch.inference, model.backbone().thresholds())
    {
        meta.store_thresholds(Thresholds { share, values });
    }
    Ok(meta)
}
