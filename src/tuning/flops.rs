//! Multiply-adds of what tuning adds. What changes weights costs nothing at inference, where they are computed once.

use crate::backbone::Dims;
use crate::config::{MemoryConfig, TuningConfig};
use crate::dispatch::flops::FlopCount;

/// Appends memory and added tasks to the count of one image with `tokens` tokens, prompts among them.
pub fn count(count: &mut FlopCount, dims: &Dims, tuning: &TuningConfig, tokens: f64) {
    let Some(cfg) = &tuning.memory else { return };
    let rows = *cfg.earlier.first().unwrap_or(&cfg.tokens) as f64;
    let (nominal, executed) = memory(cfg, dims.dim as f64, tokens, rows);
    let depth = dims.depth as f64;
    count.add("memory", depth * nominal, depth * executed);
    let bottleneck = tuning.adapter.map_or(0, |adapter| adapter.bottleneck) as f64;
    let added = added(cfg, dims, tokens, bottleneck);
    if added > 0.0 {
        // Keys and values of the model's own tokens are computed again for the added ones.
        let again = tokens * 2.0 * (dims.dim * dims.dim) as f64;
        count.add("added tasks", depth * added, depth * (added + again));
    }
}

/// `rows` rows in one layer, nominal and executed.
fn memory(cfg: &MemoryConfig, dim: f64, tokens: f64, rows: f64) -> (f64, f64) {
    if rows == 0.0 {
        return (0.0, 0.0);
    }
    let keys = rows * 2.0 * dim * dim;
    if !cfg.patches_read {
        // The class token asks a second time, among all keys.
        let again = (tokens + 1.0) * 2.0 * dim * dim + 2.0 * tokens * dim;
        let read = 2.0 * rows * dim;
        return (keys + read, keys + read + again);
    }
    // The kernel lets the rows ask too and drops their answers; before the norm they pass the whole half block.
    let scores = 2.0 * ((tokens + rows).powi(2) - tokens * tokens) * dim;
    let projections = if cfg.before_norm { 4.0 } else { 3.0 };
    (keys + 2.0 * tokens * rows * dim, rows * projections * dim * dim + scores)
}

/// The class tokens of all added tasks in one layer.
fn added(cfg: &MemoryConfig, dims: &Dims, tokens: f64, bottleneck: f64) -> f64 {
    let (dim, hidden) = (dims.dim as f64, dims.hidden as f64);
    let task = |t: usize| {
        let rows = *cfg.earlier.get(t).unwrap_or(&cfg.tokens) as f64;
        let attention = (4.0 + 2.0 * rows) * dim * dim + 2.0 * (tokens + t as f64 + rows) * dim;
        attention + 2.0 * dim * (hidden + bottleneck)
    };
    (1..=cfg.earlier.len()).map(task).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_keys_and_values() {
        let cfg =
            MemoryConfig { tokens: 2, before_norm: true, patches_read: true, earlier: vec![] };
        // 2 rows, 3 tokens, 10 channels: keys and values 2 · 2 · 100, scores and mixing 2 · 3 · 2 · 10.
        assert_eq!(memory(&cfg, 10.0, 3.0, 2.0), (400.0 + 120.0, 800.0 + 2.0 * 16.0 * 10.0));
        let class = MemoryConfig { patches_read: false, ..cfg };
        assert_eq!(memory(&class, 10.0, 3.0, 2.0).0, 400.0 + 2.0 * 2.0 * 10.0);
    }
}
