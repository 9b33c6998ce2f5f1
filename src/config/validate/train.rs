//! The training loop and the evaluation.

use super::{Check, positive, require, share};
use crate::config::{
    AdamWConfig, Config, EvalConfig, EvalMode, GroupConfig, OptimizerConfig, ScheduleConfig, Task,
    TrainConfig, TuningConfig, Variant,
};

pub(super) fn optimizer(config: &OptimizerConfig) -> Check {
    let (name, lr, decay, groups) = match config {
        OptimizerConfig::Adamw(c) => ("adamw", c.lr, c.weight_decay, c.groups),
        OptimizerConfig::Sgd(c) => ("sgd", c.lr, c.weight_decay, c.groups),
    };
    let GroupConfig { head_lr_multiplier, layer_decay } = groups;
    let key = |part: &str| format!("optimizer.{name}.{part}");
    positive(lr, &key("lr"))?;
    require(decay >= 0.0 && decay.is_finite(), &key("weight_decay"), "must be at least 0")?;
    positive(head_lr_multiplier, &key("groups.head_lr_multiplier"))?;
    positive(layer_decay, &key("groups.layer_decay"))?;
    match config {
        OptimizerConfig::Adamw(AdamWConfig { betas, eps, .. }) => {
            require(
                betas.iter().all(|b| (0.0..1.0).contains(b)),
                &key("betas"),
                "must be in [0, 1)",
            )?;
            positive(*eps, &key("eps"))
        }
        OptimizerConfig::Sgd(c) => {
            require((0.0..1.0).contains(&c.momentum), &key("momentum"), "must be in [0, 1)")
        }
    }
}

pub(super) fn schedule(config: &ScheduleConfig) -> Check {
    let rule = "must be at least 0";
    let warmup = |epochs: Option<f64>, iterations: u64, key: &str| {
        let good = epochs.is_none_or(|epochs| epochs >= 0.0 && epochs.is_finite());
        require(good, key, rule)?;
        require(epochs.is_none() || iterations == 0, key, "and `warmup_iters` are both given")
    };
    match config {
        ScheduleConfig::Poly(c) => {
            warmup(c.warmup_epochs, c.warmup_iters, "schedule.poly.warmup_epochs")?;
            require(c.power >= 0.0, "schedule.poly.power", rule)?;
            share(c.warmup_ratio, "schedule.poly.warmup_ratio")?;
            require(c.min_lr >= 0.0, "schedule.poly.min_lr", rule)
        }
        ScheduleConfig::Cosine(c) => {
            warmup(c.warmup_epochs, c.warmup_iters, "schedule.cosine.warmup_epochs")?;
            require(c.warmup_lr >= 0.0, "schedule.cosine.warmup_lr", rule)?;
            require(c.min_lr >= 0.0, "schedule.cosine.min_lr", rule)
        }
    }
}

pub(super) fn train(config: &TrainConfig) -> Check {
    let rule = "must be at least 1";
    let one_length = config.iterations.is_some() != config.epochs.is_some();
    require(one_length, "train", "needs exactly one of `iterations` and `epochs`")?;
    require(config.iterations != Some(0), "train.iterations", rule)?;
    config.epochs.map_or(Ok(()), |epochs| positive(epochs, "train.epochs"))?;
    require(config.batch_size > 0, "train.batch_size", rule)?;
    require(config.accumulate > 0, "train.accumulate", rule)?;
    require(config.eval_every != Some(0), "train.eval_every", rule)?;
    require(config.checkpoint_every > 0, "train.checkpoint_every", rule)?;
    require(config.checkpoint_blocks != Some(0), "train.checkpoint_blocks", rule)?;
    require(config.log_every > 0, "train.log_every", rule)?;
    if let Some(norm) = config.clip_norm {
        positive(norm, "train.clip_norm")?;
    }
    match config.ema {
        Some(decay) => require((0.0..1.0).contains(&decay), "train.ema", "must be in [0, 1)"),
        None => Ok(()),
    }
}

pub(super) fn eval(config: &EvalConfig) -> Check {
    require(!config.scales.is_empty(), "eval.scales", "must not be empty")?;
    config.scales.iter().try_for_each(|&scale| positive(scale, "eval.scales"))?;
    match config.mode {
        EvalMode::Whole => Ok(()),
        EvalMode::Slide { crop, stride } => {
            require(crop > 0, "eval.mode.slide.crop", "must be at least 1")?;
            require(
                (1..=crop).contains(&stride),
                "eval.mode.slide.stride",
                "must be between 1 and the crop",
            )
        }
    }
}

/// Everything before the head must give the same for an image in every epoch.
pub(super) fn cached_features<H>(config: &Config<H>) -> Check {
    let rule = |why: &str| format!("cannot be used: {why}");
    let key = "train.cache_features";
    let classifies = config.task == Task::Classification;
    require(classifies, key, &rule("it is for classification, whose head needs one token"))?;
    let frozen = config.tuning == TuningConfig::default();
    require(frozen, key, &rule("`tuning` trains parts of the backbone"))?;
    let alone = config.extends.is_none();
    require(alone, key, &rule("the task of `extends` needs the tokens of its own memory"))?;
    let dense = config.dispatch.variant == Variant::None;
    require(dense, key, &rule("`dispatch` trains parts of the backbone"))?;
    require(config.backbone.drop_path == 0.0, key, &rule("`backbone.drop_path` is random"))?;
    require(config.data.mix.is_none(), key, &rule("`data.mix` blends images"))?;
    match crate::data::random_step(&config.data.train) {
        None => Ok(()),
        Some(step) => Err(format!("`{key}` {}", rule(&format!("`{step}` is random")))),
    }
}
