//! Readers, transforms and mixing.

use super::{Check, require, share};
use crate::config::{Config, SamplingConfig, SplitConfig, Task, TransformConfig};

pub(super) fn split(config: &SplitConfig, key: &str) -> Check {
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

pub(super) fn mix<H>(config: &Config<H>) -> Check {
    let Some(mix) = &config.data.mix else { return Ok(()) };
    let rule = "is for classification, whose targets can be shares of classes";
    require(config.task == Task::Classification, "data.mix", rule)?;
    for (alpha, key) in [(mix.mixup, "data.mix.mixup"), (mix.cutmix, "data.mix.cutmix")] {
        require(alpha >= 0.0 && alpha.is_finite(), key, "must be at least 0")?;
    }
    share(mix.prob, "data.mix.prob")?;
    share(mix.switch_prob, "data.mix.switch_prob")
}
