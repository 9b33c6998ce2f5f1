//! Which tokens work where (\[DyT\] §3.3).

use serde::{Deserialize, Serialize};

/// Token dispatch (\[DyT\] §3.3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DispatchConfig {
    /// What inactive tokens skip.
    pub variant: Variant,
    /// r, the share of tokens that should be active.
    pub target_rate: f64,
    /// How r falls to `target_rate` during training; `null` holds it from the start, as published.
    pub rate_schedule: Option<RateSchedule>,
    /// τ of the Gumbel-sigmoid.
    pub tau: f64,
    /// Which tokens are active without noise.
    pub inference: Inference,
    /// How the noise fades during training; `null` keeps it, as published.
    pub noise: Option<NoiseConfig>,
    /// Who decides: the learned dispatcher or chance (the ablation of \[DyT\] Table 7).
    pub select: Select,
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            variant: Variant::None,
            target_rate: 0.5,
            rate_schedule: None,
            tau: 5.0,
            inference: Inference::Threshold,
            noise: None,
            select: Select::Learned,
        }
    }
}

impl DispatchConfig {
    /// The share of tokens that untrained dispatchers keep.
    pub fn initial_rate(&self) -> f64 {
        self.rate_schedule.map_or(0.5, |schedule| schedule.from)
    }

    /// r after the share `progress` of the training.
    pub fn rate_at(&self, progress: f64) -> f64 {
        match self.rate_schedule {
            Some(RateSchedule { from, until }) if progress < until => {
                from + (self.target_rate - from) * progress / until
            }
            _ => self.target_rate,
        }
    }
}

/// A budget that tightens, so that the model learns its task before it learns what it can do without.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSchedule {
    /// r at the start, in (0, 1); the dispatchers' biases start at logit(r), so that chance alone meets it.
    pub from: f64,
    /// Share of the training after which `target_rate` is reached (linear from `from`).
    pub until: f64,
}

/// What inactive tokens skip (\[DyT\] Fig. 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Nothing: the dense model.
    None,
    /// The MLP (the published default).
    Mlp,
}

/// Which tokens are active at inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inference {
    /// σ(logit) > 0.5, as published.
    Threshold,
    /// The share q of each image's tokens with the highest logits, layer by layer; ties to the lowest index.
    TopK(f64),
    /// Thresholds stored by calibration, so that the share q of all tokens is active.
    Calibrated(f64),
}

/// Noise that fades before the end of training closes the gap between training and inference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseConfig {
    /// Factor on the noise that is reached in the end.
    pub anneal_to: f64,
    /// Share of the training after which it is reached (linear from 1).
    pub until: f64,
}

/// Who decides which tokens are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The trained dispatcher.
    Learned,
    /// A coin with probability r per token and layer.
    Random,
}
