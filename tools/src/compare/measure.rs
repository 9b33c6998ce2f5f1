//! What one run reached and what it cost.

use anyhow::{Context, Result};
use rescatter::Error;
use rescatter::config::{DispatchConfig, TuningConfig};
use rescatter::engine::Run;
use rescatter::model::TrainedParts;
use rescatter_heads::flops::{Pass, count};
use rescatter_heads::{Config, task};
use serde::Deserialize;
use serde_json::Value;

use crate::flops::default_size;

/// The scores that may lead a table, the most important first.
const SCORES: [&str; 3] = ["mIoU", "bbox.AP", "top1"];

/// The figures of one run.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// The name of the score.
    pub(super) score: &'static str,
    pub(super) figures: Figures,
}

/// The numbers of one run; means over runs have the same form.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Figures {
    /// The score, as a fraction.
    pub(super) score: f64,
    /// Trained numbers of the backbone and of what was added to it.
    pub(super) backbone_parameters: f64,
    /// Trained numbers of the head.
    pub(super) head_parameters: f64,
    /// Multiply-adds of one image as the papers count them, in 10⁹.
    pub(super) gmacs_nominal: f64,
    /// Those that are executed.
    pub(super) gmacs_executed: f64,
    /// `gmacs_nominal` over those of the plain dense model.
    pub(super) gmacs_share: f64,
    /// Share of the tokens that were worked on at evaluation.
    pub(super) kept: f64,
    pub(super) seconds_per_step: f64,
    /// Of inference, reading excluded.
    pub(super) seconds_per_image: f64,
}

impl Measured {
    /// From the results of a finished run.
    pub(super) fn read(run: &Run, config: &Config) -> Result<Self> {
        let path = run.results_path();
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let results: Value = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
        let number = |key: &str| {
            results[key].as_f64().with_context(|| format!("{}: `{key}` is missing", path.display()))
        };
        let score = SCORES.into_iter().find(|name| results[name].is_number());
        let score = score.with_context(|| format!("{}: there is no score", path.display()))?;
        let kept = number("kept")?;
        let size = default_size(config)?;
        let layers = results["kept_per_layer"].as_array().into_iter().flatten();
        let layers: Vec<f64> = layers.filter_map(Value::as_f64).collect();
        let shares = if layers.is_empty() { &[kept][..] } else { &layers };
        let pass = Pass { size, kept: shares, classes: task::class_names(config)?.len() };
        let macs = count(config, pass)?;
        let dense = count(&plain(config), Pass { kept: &[1.0], ..pass })?;
        let trained = TrainedParts::deserialize(&results["trained"])
            .map_err(|e| Error::file(&path, format!("`trained`: {e}")))?;
        Ok(Self {
            score,
            figures: Figures {
                score: number(score)?,
                backbone_parameters: (trained.method + trained.dispatchers) as f64,
                head_parameters: trained.head as f64,
                gmacs_nominal: macs.nominal_gmacs(),
                gmacs_executed: macs.executed_gmacs(),
                gmacs_share: macs.nominal_gmacs() / dense.nominal_gmacs(),
                kept,
                seconds_per_step: number("train_seconds")? / number("step")?.max(1.0),
                seconds_per_image: number("seconds_per_image")?,
            },
        })
    }
}

/// The same head on a model that neither leaves out nor merges tokens, and to which nothing was added.
fn plain(config: &Config) -> Config {
    Config {
        dispatch: DispatchConfig::default(),
        tuning: TuningConfig::default(),
        ..config.clone()
    }
}

impl Figures {
    /// The mean, number by number; `None` of nothing.
    pub(super) fn mean(all: &[Self]) -> Option<Self> {
        let mean = |of: fn(&Self) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self {
            score: mean(|f| f.score),
            backbone_parameters: mean(|f| f.backbone_parameters),
            head_parameters: mean(|f| f.head_parameters),
            gmacs_nominal: mean(|f| f.gmacs_nominal),
            gmacs_executed: mean(|f| f.gmacs_executed),
            gmacs_share: mean(|f| f.gmacs_share),
            kept: mean(|f| f.kept),
            seconds_per_step: mean(|f| f.seconds_per_step),
            seconds_per_image: mean(|f| f.seconds_per_image),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_model_is_the_same_for_all_methods() {
        let gmacs = |overrides: &[&str]| {
            let path =
                concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/cifar10_1k_vit_s14_dyt.yaml");
            let overrides: Vec<String> = overrides.iter().map(|&o| o.into()).collect();
            let config = rescatter::config::load::load(path.as_ref(), &overrides).unwrap();
            let pass = Pass { size: (112, 112), kept: &[1.0], classes: 10 };
            count(&plain(&config), pass).unwrap().nominal_gmacs()
        };
        let dense = gmacs(&["dispatch={}", "tuning={}"]);
        for method in ["dispatch.tome={r: 8}", "dispatch.variant=layer", "tuning.vpt={tokens: 5}"] {
            assert_eq!(gmacs(&[method]), dense, "{method}");
        }
    }
}
