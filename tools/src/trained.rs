//! What `eval`, `predict` and `bench` have in common: which trained model is meant.

use clap::ValueEnum;
use rescatter_heads::run::Which;

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
