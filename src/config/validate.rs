//! Ranges and combinations that the types cannot express; every message names its key.

use super::Config;

mod data;
mod model;
mod train;
mod tuning;

pub(crate) use model::places;

type Check = std::result::Result<(), String>;

/// Whether the values of `config` make sense; the error is one sentence that names the key.
pub(super) fn check<H>(config: &Config<H>) -> Check {
    device(&config.device)?;
    model::backbone(&config.backbone)?;
    model::dispatch(&config.dispatch)?;
    model::dispatched_places(&config.dispatch, &config.backbone)?;
    tuning::check(&config.tuning, &config.dispatch, &config.backbone)?;
    model::merging(config)?;
    data::split(&config.data.train, "data.train")?;
    data::split(&config.data.val, "data.val")?;
    for (value, key) in [
        (config.loss.rate, "rate"),
        (config.loss.complete, "complete"),
        (config.loss.distill, "distill"),
    ] {
        require(value >= 0.0 && value.is_finite(), &format!("loss.{key}"), "must be at least 0")?;
    }
    train::optimizer(&config.optimizer)?;
    train::schedule(&config.schedule)?;
    train::train(&config.train)?;
    data::mix(config)?;
    if config.train.cache_features {
        train::cached_features(config)?;
    }
    train::eval(&config.eval)
}

#[allow(clippy::fn_params_excessive_bools, reason = "a condition, as in assert!")]
fn require(holds: bool, key: &str, rule: &str) -> Check {
    if holds { Ok(()) } else { Err(format!("`{key}` {rule}")) }
}

fn share(value: f64, key: &str) -> Check {
    require((0.0..=1.0).contains(&value), key, "must be between 0 and 1")
}

/// In (0, ∞).
fn positive(value: f64, key: &str) -> Check {
    require(value > 0.0 && value.is_finite(), key, "must be positive")
}

fn device(name: &str) -> Check {
    let cuda = name.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
    require(
        cuda || name == "auto" || name == "cpu",
        "device",
        &format!("is `{name}`; it may be auto, cpu or cuda:N"),
    )
}
