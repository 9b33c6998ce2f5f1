//! Methods that exclude one another, and what they need of the backbone.

use super::{Check, positive, require, share};
use crate::config::{Arch, BackboneConfig, BackboneTuning, DispatchConfig, TuningConfig};
use crate::dispatch::Site;

/// Whether the methods of `config` go together on `backbone` under `dispatch`.
pub(super) fn check(
    config: &TuningConfig,
    dispatch: &DispatchConfig,
    backbone: &BackboneConfig,
) -> Check {
    let rule = "must be at least 1";
    if let Some(adapter) = &config.adapter {
        require(adapter.bottleneck > 0, "tuning.adapter.bottleneck", rule)?;
        require(adapter.experts > 0, "tuning.adapter.experts", rule)?;
        share(adapter.dropout, "tuning.adapter.dropout")?;
    }
    if let Some(adapter) = &config.st_adapter {
        require(adapter.bottleneck > 0, "tuning.st_adapter.bottleneck", rule)?;
        let odd = adapter.kernel.iter().all(|side| side % 2 == 1);
        require(odd, "tuning.st_adapter.kernel", "must be three odd numbers")?;
    }
    if let Some(lora) = &config.lora {
        require(lora.rank > 0, "tuning.lora.rank", rule)?;
        require(!lora.targets.is_empty(), "tuning.lora.targets", "must name a weight")?;
        let twice = (1..lora.targets.len()).any(|i| lora.targets[..i].contains(&lora.targets[i]));
        require(!twice, "tuning.lora.targets", "names a weight twice")?;
        positive(lora.alpha.unwrap_or(1.0), "tuning.lora.alpha")?;
    }
    if config.rlrr.is_some() && config.ssf.is_some() {
        return Err("`tuning.ssf` cannot be had with `tuning.rlrr`, which has scales and shifts of its own; leave one out".into());
    }
    weights(config, backbone)?;
    if let Some(vpt) = &config.vpt {
        require(vpt.tokens > 0, "tuning.vpt.tokens", rule)?;
        whole_images("vpt", "prompts", backbone)?;
    }
    if let Some(memory) = &config.memory {
        require(memory.tokens > 0, "tuning.memory.tokens", rule)?;
        whole_images("memory", "memory rows", backbone)?;
        let all_attend = dispatch.variant.dispatched().iter().all(|&site| site == Site::Mlp);
        let rule = "is read by all tokens: with it `dispatch.variant` must be none or mlp";
        require(all_attend, "tuning.memory", rule)?;
        let read = memory.patches_read || backbone.cls_token || !memory.earlier.is_empty();
        let rule = "must be true where `backbone.cls_token` is false: nobody would read the memory";
        require(read, "tuning.memory.patches_read", rule)?;
        let experts = config.adapter.is_some_and(|adapter| adapter.experts > 1);
        let rule =
            "cannot follow adapters with experts, whose router would see the new task's token";
        require(memory.earlier.is_empty() || !experts, "tuning.memory.earlier", rule)?;
    }
    Ok(())
}

/// What changes the weights that another method changes already.
fn weights(config: &TuningConfig, backbone: &BackboneConfig) -> Check {
    let methods = [
        ("lora", config.lora.is_some()),
        ("rlrr", config.rlrr.is_some()),
        ("ssf", config.ssf.is_some()),
        ("ia3", config.ia3.is_some()),
    ];
    let given = |names: &[&str]| {
        methods.iter().find(|(name, given)| *given && names.contains(name)).map(|(name, _)| *name)
    };
    let refuse = |method: Option<&str>, value: &str, trained: &str| match method {
        None => Ok(()),
        Some(method) => Err(format!(
            "`tuning.{method}` cannot be had with `tuning.backbone: {value}`, which trains the {trained} that it would \
             change; set `tuning.backbone: frozen` or leave `tuning.{method}` out"
        )),
    };
    match config.backbone {
        BackboneTuning::Frozen => Ok(()),
        BackboneTuning::Bitfit => refuse(given(&["rlrr", "ssf"]), "bitfit", "biases"),
        BackboneTuning::Full => refuse(given(&["lora", "rlrr", "ssf", "ia3"]), "full", "weights"),
        BackboneTuning::Partial(blocks) => {
            let depth = backbone.depth.or(backbone.arch.map(Arch::depth)).unwrap_or(0);
            let rule = format!("must be between 1 and the {depth} blocks");
            require((1..=depth).contains(&blocks), "tuning.backbone.partial", &rule)?;
            refuse(given(&["lora", "rlrr", "ssf", "ia3"]), "{ partial: … }", "weights")
        }
    }
}

/// Learned rows have no place in windows or relative positions.
fn whole_images(method: &str, rows: &str, backbone: &BackboneConfig) -> Check {
    let key = match (&backbone.window, &backbone.rel_pos) {
        (None, None) => return Ok(()),
        (Some(_), _) => "window",
        (None, Some(_)) => "rel_pos",
    };
    Err(format!(
        "`tuning.{method}` cannot be had with `backbone.{key}`: {rows} have no place in the image; \
         an adapter or `tuning.lora` can be had"
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::load;

    fn message(backbone: &str, tuning: &str) -> Option<String> {
        message_under("none", backbone, tuning)
    }

    fn message_under(variant: &str, backbone: &str, tuning: &str) -> Option<String> {
        let split = "{ ade20k: { images: a, labels: b, classes: [x] } }";
        let text = format!(
            "task: segmentation\nbackbone: {{ arch: vit_s, patch_size: 16, pos_embed_grid: [14, 14]{backbone} }}\n\
             dispatch: {{ variant: {variant} }}\ntuning: {tuning}\nhead: 1\ndata: {{ train: {split}, val: {split} }}\ntrain: {{ iterations: 1, batch_size: 1 }}"
        );
        let config = load::parse::<u32>(&text, "a.yaml".as_ref(), &[]);
        config.err().map(|error| error.to_string())
    }

    #[test]
    fn combinations_that_make_no_sense_are_refused() {
        let window = ", cls_token: false, window: { size: 7, global_blocks: [2] }";
        for (backbone, tuning, part) in [
            (
                "",
                "{ backbone: full, lora: { rank: 4 } }",
                "`tuning.lora` cannot be had with `tuning.backbone: full`",
            ),
            (
                "",
                "{ backbone: { partial: 2 }, ia3: {} }",
                "trains the weights that it would change",
            ),
            ("", "{ backbone: bitfit, rlrr: {} }", "trains the biases"),
            ("", "{ backbone: { partial: 13 } }", "must be between 1 and the 12 blocks"),
            ("", "{ ssf: {}, rlrr: {} }", "scales and shifts of its own"),
            ("", "{ lora: { rank: 4, targets: [q, q] } }", "names a weight twice"),
            ("", "{ vpt: { tokens: 0 } }", "`tuning.vpt.tokens` must be at least 1"),
            (window, "{ vpt: { tokens: 5 } }", "cannot be had with `backbone.window`"),
            (window, "{ memory: { tokens: 5 } }", "cannot be had with `backbone.window`"),
            (
                ", cls_token: false",
                "{ memory: { tokens: 5, patches_read: false } }",
                "nobody would read",
            ),
        ] {
            let found = message(backbone, tuning).unwrap_or_default();
            assert!(found.contains(part), "{tuning}: {found}");
        }
        for variant in ["attention", "attention_mlp", "layer"] {
            let found = message_under(variant, "", "{ memory: { tokens: 5 } }").unwrap_or_default();
            assert!(found.contains("`tuning.memory` is read by all tokens"), "{variant}: {found}");
        }
        for tuning in [
            "{ backbone: bitfit, lora: { rank: 4 } }",
            "{ adapter: { bottleneck: 8 }, lora: { rank: 4 }, ssf: {}, ia3: {}, vpt: { tokens: 2 }, memory: { tokens: 2 } }",
        ] {
            assert_eq!(message("", tuning), None);
        }
    }
}
