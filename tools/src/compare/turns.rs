//! What an image costs each method, measured by turns.

use anyhow::Result;
use rescatter::ops::in_precision;
use rescatter_heads::run::Trained;

use crate::bench::{Noise, Times};
use crate::flops::default_size;

/// Images of a pass.
const BATCH: usize = 8;

/// Timed passes of each model, after one to warm up.
const ROUNDS: usize = 7;

/// Median seconds per image of every model at the size of its validation images. One pass of each model is a round, so that a slower
/// minute of the machine hits all of them.
pub(super) fn seconds_per_image(models: &[Trained]) -> Result<Vec<f64>> {
    let batch = |trained: &Trained| Noise::new(trained, (BATCH, default_size(&trained.config)?));
    let batches = models.iter().map(batch).collect::<Result<Vec<_>>>()?;
    let mut seconds = vec![Vec::new(); models.len()];
    for round in 0..=ROUNDS {
        for ((trained, batch), seconds) in models.iter().zip(&batches).zip(&mut seconds) {
            let model = &trained.model;
            let pass = || batch.pass(model, model.backbone());
            let (_, whole, _) = in_precision(trained.config.train.precision, pass)?;
            if round > 0 {
                seconds.push(whole.seconds);
            }
        }
    }
    Ok(seconds.iter().map(|seconds| Times::new(seconds).median_ms / 1e3 / BATCH as f64).collect())
}
