//! What `eval`, `predict` and `bench` have in common: which trained model is meant.

use std::path::Path;

use clap::ValueEnum;
use rescatter::{Error, Result};
use rescatter_heads::Trained;
use rescatter_heads::run::{Which, is_config};

/// The value of `--checkpoint`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Checkpoint {
    /// With the best score on the validation set.
    Best,
    /// Where training stopped.
    Last,
}

impl From<Checkpoint> for Which {
    fn from(checkpoint: Checkpoint) -> Self {
        match checkpoint {
            Checkpoint::Best => Which::Best,
            Checkpoint::Last => Which::Last,
        }
    }
}

/// The model behind `path`, for its answers: says so where its head was never trained.
///
/// # Errors
/// As [`Trained::open`]; or if `path` is the config of a run, whose weights are meant.
pub(crate) fn open(path: &Path, checkpoint: Checkpoint, overrides: &[String]) -> Result<Trained> {
    if !is_config(path) {
        return Trained::open(path, checkpoint.into(), overrides);
    }
    let best = path.with_file_name("best.safetensors");
    if let (true, Some(folder)) = (best.exists(), best.parent()) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        return Err(Error::file(
            path,
            "is a config alone, but the weights of its run lie beside it",
        )
        .with_hint(format!("name the run's folder: `{}`", folder.display())));
    }
    let trained = Trained::open(path, checkpoint.into(), overrides)?;
    let untrained = match trained.config.backbone.weights {
        Some(_) => "the head has",
        None => "backbone and head have",
    };
    tracing::warn!(
        "{} is a config: {untrained} initial values, which were never trained",
        path.display()
    );
    Ok(trained)
}
