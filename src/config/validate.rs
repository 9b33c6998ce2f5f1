//! Ranges and combinations that the types cannot express; every message names its key.

use super::{
    AdamWConfig, Arch, BackboneConfig, Config, DispatchConfig, EvalConfig, EvalMode, GroupConfig,
    Inference, OptimizerConfig, SamplingConfig, ScheduleConfig, SplitConfig, Task, TrainConfig,
    TransformConfig, TuningConfig, Variant,
};
use crate::dispatch::Site;

mod tuning;

type Check = std::result::Result<(), String>;

/// Whether the values of `config` make sense; the error is one sentence that names the key.
pub(super) fn check<H>(config: &Config<H>) -> Check {
    device(&config.device)?;
    backbone(&config.backbone)?;
    dispatch(&config.dispatch)?;
    dispatched_places(&config.dispatch, &config.backbone)?;
    tuning::check(&config.tuning, &config.dispatch, &config.backbone)?;
    merging(config)?;
    split(&config.data.train, "data.train")?;
    split(&config.data.val, "data.val")?;
    for (value, key) in [
        (config.loss.rate, "rate"),
        (config.loss.complete, "complete"),
        (config.loss.distill, "distill"),
    ] {
        require(value >= 0.0 && value.is_finite(), &format!("loss.{key}"), "must be at least 0")?;
    }
    optimizer(&config.optimizer)?;
    schedule(&config.schedule)?;
    train(&config.train)?;
    mix(config)?;
    if config.train.cache_features {
        cached_features(config)?;
    }
    eval(&config.eval)
}

fn mix<H>(config: &Config<H>) -> Check {
    let Some(mix) = &config.data.mix else { return Ok(()) };
    let rule = "is for classification, whose targets can be shares of classes";
    require(config.task == Task::Classification, "data.mix", rule)?;
    for (alpha, key) in [(mix.mixup, "data.mix.mixup"), (mix.cutmix, "data.mix.cutmix")] {
        require(alpha >= 0.0 && alpha.is_finite(), key, "must be at least 0")?;
    }
    share(mix.prob, "data.mix.prob")?;
    share(mix.switch_prob, "data.mix.switch_prob")
}

/// Everything before the head must give the same for an image in every epoch.
fn cached_features<H>(config: &Config<H>) -> Check {
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

fn backbone(config: &BackboneConfig) -> Check {
    let heads = config.num_heads.or(config.arch.map(Arch::num_heads));
    let width = config.embed_dim.or(config.arch.map(Arch::embed_dim));
    let rule = "is needed where `backbone.arch` is not given";
    let (Some(width), Some(heads)) = (width, heads) else {
        return Err(format!(
            "`backbone.{}` {rule}",
            if width.is_none() { "embed_dim" } else { "num_heads" }
        ));
    };
    require(config.arch.is_some() || config.depth.is_some(), "backbone.depth", rule)?;
    require(config.depth != Some(0), "backbone.depth", "must be at least 1")?;
    require(width > 0, "backbone.embed_dim", "must be at least 1")?;
    let divides = heads > 0 && width.is_multiple_of(heads);
    require(
        divides,
        "backbone.num_heads",
        &format!("is {heads}, which does not divide the width {width}"),
    )?;
    if let Some(ratio) = config.mlp_ratio {
        positive(ratio, "backbone.mlp_ratio")?;
    }
    require(config.patch_size > 0, "backbone.patch_size", "must be at least 1")?;
    require(
        config.pos_embed_grid.iter().all(|&n| n > 0),
        "backbone.pos_embed_grid",
        "must be at least 1 × 1",
    )?;
    require((0.0..1.0).contains(&config.drop_path), "backbone.drop_path", "must be in [0, 1)")?;
    places(config)
}

/// Windows and relative positions need a model of patches alone.
pub(crate) fn places(config: &BackboneConfig) -> Check {
    let prefix = if config.cls_token {
        Some("set `backbone.cls_token: false`, as ViTDet does with its pretrained weights")
    } else {
        (config.reg_tokens > 0).then_some("set `backbone.reg_tokens: 0`")
    };
    let without_prefix = |key: &str| match prefix {
        None => Ok(()),
        Some(cure) => Err(format!(
            "`{key}` cannot be had with class or register tokens, which have no place in the image; {cure}"
        )),
    };
    if !config.cls_token {
        let rule = "must be 0 where `backbone.cls_token` is false";
        require(config.reg_tokens == 0, "backbone.reg_tokens", rule)?;
    }
    if let Some(window) = &config.window {
        let key = "backbone.window.global_blocks";
        require(window.size > 0, "backbone.window.size", "must be at least 1")?;
        let blocks = &window.global_blocks;
        require(blocks.is_sorted_by(|a, b| a < b), key, "must be rising")?;
        let depth = config.depth.or(config.arch.map(Arch::depth)).unwrap_or(0);
        if let Some(block) = blocks.iter().find(|&&block| block >= depth) {
            let rule = format!("names block {block}, but the {depth} blocks count from 0");
            return Err(format!("`{key}` {rule}"));
        }
        without_prefix("backbone.window")?;
    }
    if let Some(positions) = &config.rel_pos {
        let rule = "must be at least 1 × 1";
        require(positions.grid.iter().all(|&n| n > 0), "backbone.rel_pos.grid", rule)?;
        without_prefix("backbone.rel_pos")?;
    }
    Ok(())
}

fn dispatch(config: &DispatchConfig) -> Check {
    share(config.target_rate, "dispatch.target_rate")?;
    positive(config.tau, "dispatch.tau")?;
    match config.inference {
        Inference::Threshold => {}
        Inference::TopK(_) if config.select.by_sample() => {
            return Err("`dispatch.inference` cannot be `top_k` where `dispatch.select` decides for whole images".into());
        }
        Inference::TopK(q) | Inference::Calibrated(q) => share(q, "dispatch.inference")?,
    }
    if let Some(schedule) = config.tau_schedule {
        positive(schedule.to, "dispatch.tau_schedule.to")?;
        share(schedule.until, "dispatch.tau_schedule.until")?;
        positive(schedule.until, "dispatch.tau_schedule.until")?;
    }
    if let Some(schedule) = config.rate_schedule {
        share(schedule.from, "dispatch.rate_schedule.from")?;
        positive(schedule.from, "dispatch.rate_schedule.from")?;
        require(schedule.from < 1.0, "dispatch.rate_schedule.from", "must be less than 1")?;
        share(schedule.until, "dispatch.rate_schedule.until")?;
        positive(schedule.until, "dispatch.rate_schedule.until")?;
    }
    if let Some(noise) = config.noise {
        share(noise.anneal_to, "dispatch.noise.anneal_to")?;
        share(noise.until, "dispatch.noise.until")?;
        positive(noise.until, "dispatch.noise.until")?;
    }
    Ok(())
}

/// What the variants ask of the backbone.
fn dispatched_places(config: &DispatchConfig, backbone: &BackboneConfig) -> Check {
    let sites = config.variant.dispatched();
    if backbone.rel_pos.is_some() && sites.iter().any(|&site| site != Site::Mlp) {
        let key = "dispatch.variant";
        return Err(format!(
            "`{key}` cannot restrict the attention to active tokens where `backbone.rel_pos` ties it to all places; take `mlp`"
        ));
    }
    let depth = backbone.depth.or(backbone.arch.map(Arch::depth)).unwrap_or(0);
    let (key, count) = ("dispatch.pruned", depth * sites.len());
    match config.pruned.iter().find(|&&number| number >= count) {
        Some(number) => Err(format!(
            "`{key}` names dispatcher {number}, but the {count} dispatchers count from 0"
        )),
        None => Ok(()),
    }
}

/// Merged tokens have no place in the image, and keys of skipped tokens do not exist.
fn merging<H>(config: &Config<H>) -> Check {
    let Some(tome) = config.dispatch.tome else { return Ok(()) };
    require(tome.r > 0, "dispatch.tome.r", "must be at least 1")?;
    let key = "dispatch.tome";
    let rule = "merges tokens, which only the task `classification` can do without";
    require(config.task == Task::Classification, key, rule)?;
    let sites = config.dispatch.variant.dispatched();
    let rule = "compares the keys of all tokens; it goes with `dispatch.variant` none or mlp";
    require(sites.iter().all(|&site| site == Site::Mlp), key, rule)?;
    let places = config.backbone.window.is_some() || config.backbone.rel_pos.is_some();
    let rule = "leaves no grid for `backbone.window` or `backbone.rel_pos`";
    require(!places, key, rule)?;
    let reads = config.tuning.memory.is_some() || config.tuning.st_adapter.is_some();
    require(!reads, key, "cannot be had with `tuning.memory` or `tuning.st_adapter`")
}

fn split(config: &SplitConfig, key: &str) -> Check {
    let readers = [
        config.ade20k.is_some(),
        config.coco_stuff.is_some(),
        config.image_folder.is_some(),
        config.cifar.is_some(),
        config.image_list.is_some(),
        config.vtab.is_some(),
        config.coco.is_some(),
        config.video_list.is_some(),
        config.concat.is_some(),
    ];
    let count = readers.into_iter().filter(|given| *given).count();
    require(
        count == 1,
        key,
        &format!(
            "needs exactly one reader (ade20k, coco_stuff, image_folder, cifar, image_list, vtab, coco, video_list, concat), got {count}"
        ),
    )?;
    if let Some(list) = &config.video_list {
        let key = format!("{key}.video_list");
        let least = "must be at least 1";
        require(list.frames > 0, &format!("{key}.frames"), least)?;
        require(list.short_side != Some(0), &format!("{key}.short_side"), least)?;
        require(list.views.clips > 0, &format!("{key}.views.clips"), least)?;
        require(list.views.crops > 0, &format!("{key}.views.crops"), least)?;
        let dense = SamplingConfig::Dense { rate: 0 };
        require(list.sampling != dense, &format!("{key}.sampling.dense.rate"), least)?;
    }
    if let Some(parts) = &config.concat {
        require(!parts.is_empty(), &format!("{key}.concat"), "must not be empty")?;
        for (i, part) in parts.iter().enumerate() {
            split(part, &format!("{key}.concat.{i}"))?;
        }
    }
    require(config.repeat != Some(0), &format!("{key}.repeat"), "must be at least 1")?;
    config
        .transforms
        .iter()
        .enumerate()
        .try_for_each(|(i, t)| transform(t, &format!("{key}.transforms.{i}")))
}

fn transform(config: &TransformConfig, key: &str) -> Check {
    let sides = |size: &[usize; 2], key: String| {
        require(size.iter().all(|&n| n > 0), &key, "must be at least 1 × 1")
    };
    let range = |range: &[f64; 2], key: String| {
        require(
            0.0 < range[0] && range[0] <= range[1] && range[1].is_finite(),
            &key,
            "must be two rising positive numbers",
        )
    };
    match config {
        TransformConfig::Resize { size, ratio_range, min_side, multiple_of, .. } => {
            if let Some(size) = size {
                sides(size, format!("{key}.resize.size"))?;
            }
            range(ratio_range, format!("{key}.resize.ratio_range"))?;
            require(*min_side != Some(0), &format!("{key}.resize.min_side"), "must be at least 1")?;
            require(
                *multiple_of != Some(0),
                &format!("{key}.resize.multiple_of"),
                "must be at least 1",
            )
        }
        TransformConfig::ResizeShortestEdge { sizes, max_size } => {
            let rule = "must be lengths of 1 to `max_size`";
            let good = !sizes.is_empty() && sizes.iter().all(|edge| (1..=*max_size).contains(edge));
            require(good, &format!("{key}.resize_shortest_edge.sizes"), rule)
        }
        TransformConfig::RandomCrop { size, cat_max_ratio } => {
            sides(size, format!("{key}.random_crop.size"))?;
            share(*cat_max_ratio, &format!("{key}.random_crop.cat_max_ratio"))
        }
        TransformConfig::RandomResizedCrop { size, scale } => {
            sides(size, format!("{key}.random_resized_crop.size"))?;
            range(scale, format!("{key}.random_resized_crop.scale"))
        }
        TransformConfig::CenterCrop { size } => sides(size, format!("{key}.center_crop.size")),
        TransformConfig::RandomFlip { prob } => share(*prob, &format!("{key}.random_flip.prob")),
        TransformConfig::PhotometricDistortion { contrast, saturation, .. } => {
            range(contrast, format!("{key}.photometric_distortion.contrast"))?;
            range(saturation, format!("{key}.photometric_distortion.saturation"))
        }
        TransformConfig::Normalize { std, .. } => require(
            std.iter().all(|&s| s > 0.0),
            &format!("{key}.normalize.std"),
            "must be positive",
        ),
        TransformConfig::ColorJitter { brightness, contrast, saturation, hue } => {
            let key = format!("{key}.color_jitter");
            let factors = [brightness, contrast, saturation];
            let rule = "must have factors that are at least 0 and a hue of 0 to 0.5";
            let good = factors.iter().all(|v| **v >= 0.0 && v.is_finite());
            require(good && (0.0..=0.5).contains(hue), &key, rule)
        }
        TransformConfig::RandAugment { magnitude, magnitude_std, .. } => {
            let key = format!("{key}.rand_augment");
            let good = (0.0..=30.0).contains(magnitude) && *magnitude_std >= 0.0;
            require(good, &key, "must have a magnitude of 0 to 30 and a deviation of at least 0")
        }
        TransformConfig::RandomErasing { prob, area, ratio, .. } => {
            share(*prob, &format!("{key}.random_erasing.prob"))?;
            range(area, format!("{key}.random_erasing.area"))?;
            share(area[1], &format!("{key}.random_erasing.area"))?;
            range(ratio, format!("{key}.random_erasing.ratio"))
        }
        TransformConfig::Pad { size } => sides(size, format!("{key}.pad.size")),
    }
}

fn optimizer(config: &OptimizerConfig) -> Check {
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

fn schedule(config: &ScheduleConfig) -> Check {
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

fn train(config: &TrainConfig) -> Check {
    let rule = "must be at least 1";
    let one_length = config.iterations.is_some() != config.epochs.is_some();
    require(one_length, "train", "needs exactly one of `iterations` and `epochs`")?;
    require(config.iterations != Some(0), "train.iterations", rule)?;
    config.epochs.map_or(Ok(()), |epochs| positive(epochs, "train.epochs"))?;
    require(config.batch_size > 0, "train.batch_size", rule)?;
    require(config.accumulate > 0, "train.accumulate", rule)?;
    require(config.eval_every != Some(0), "train.eval_every", rule)?;
    require(config.checkpoint_every > 0, "train.checkpoint_every", rule)?;
    require(config.log_every > 0, "train.log_every", rule)?;
    if let Some(norm) = config.clip_norm {
        positive(norm, "train.clip_norm")?;
    }
    match config.ema {
        Some(decay) => require((0.0..1.0).contains(&decay), "train.ema", "must be in [0, 1)"),
        None => Ok(()),
    }
}

fn eval(config: &EvalConfig) -> Check {
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
