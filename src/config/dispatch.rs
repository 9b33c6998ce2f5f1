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
    /// How τ falls during training; `null` keeps it, as published.
    pub tau_schedule: Option<TauSchedule>,
    /// Which tokens are active without noise.
    pub inference: Inference,
    /// How the noise fades during training; `null` keeps it, as published.
    pub noise: Option<NoiseConfig>,
    /// Who decides, and over what: tokens by learned dispatchers, or an ablation of \[DyT\] Table 7.
    pub select: Select,
    /// Merges similar tokens in every block, whatever the dispatchers say; for classification by the class token.
    pub tome: Option<TomeConfig>,
    /// Dispatchers, numbered in the order of the blocks, whose part `weights prune` dropped: nobody passes it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pruned: Vec<usize>,
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            variant: Variant::None,
            target_rate: 0.5,
            rate_schedule: None,
            tau: 5.0,
            tau_schedule: None,
            inference: Inference::Threshold,
            noise: None,
            select: Select::Learned,
            tome: None,
            pruned: Vec::new(),
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

    /// τ after the share `progress` of the training.
    pub fn tau_at(&self, progress: f64) -> f64 {
        match self.tau_schedule {
            Some(TauSchedule { to, until }) => {
                self.tau + (to - self.tau) * (progress / until).min(1.0)
            }
            None => self.tau,
        }
    }
}

/// Token merging (arXiv 2210.09461).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TomeConfig {
    /// Tokens that join others in a block; at most half of the patches that are left can.
    pub r: usize,
}

/// A temperature that falls, so that the gradients of decided tokens fade (\[DyT\] Table 9).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TauSchedule {
    /// τ in the end.
    pub to: f64,
    /// Share of the training after which it is reached (linear from `tau`).
    #[serde(default = "whole_training")]
    pub until: f64,
}

fn whole_training() -> f64 {
    1.0
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
    /// The attention: they ask nothing and are not asked.
    Attention,
    /// The attention and the MLP, by two dispatchers of their own.
    AttentionMlp,
    /// The whole block, by one dispatcher.
    Layer,
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
    /// The trained dispatcher, for each token.
    Learned,
    /// A coin with probability r per token and dispatcher.
    Random,
    /// The trained dispatcher, once for all patches of an image: by the mean of their tokens.
    Sample,
    /// A coin with probability r per image and dispatcher.
    RandomSample,
}

impl Select {
    /// Whether dispatchers are trained.
    pub fn learns(self) -> bool {
        matches!(self, Self::Learned | Self::Sample)
    }

    /// Whether all patches of an image share one decision.
    pub fn by_sample(self) -> bool {
        matches!(self, Self::Sample | Self::RandomSample)
    }
}
