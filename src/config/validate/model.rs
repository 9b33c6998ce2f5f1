//! The backbone, and what is dispatched in it.

use super::{Check, positive, require, share};
use crate::config::{Arch, BackboneConfig, Config, DispatchConfig, Inference, Task};
use crate::dispatch::Site;

pub(super) fn backbone(config: &BackboneConfig) -> Check {
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

pub(super) fn dispatch(config: &DispatchConfig) -> Check {
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
pub(super) fn dispatched_places(config: &DispatchConfig, backbone: &BackboneConfig) -> Check {
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
pub(super) fn merging<H>(config: &Config<H>) -> Check {
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
    let rule =
        "changes tokens from block to block; it cannot be had with `train.checkpoint_blocks`";
    require(config.train.checkpoint_blocks.is_none(), key, rule)?;
    let reads = config.tuning.memory.is_some() || config.tuning.st_adapter.is_some();
    require(!reads, key, "cannot be had with `tuning.memory` or `tuning.st_adapter`")
}
