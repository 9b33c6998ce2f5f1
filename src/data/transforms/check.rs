//! Whether the numbers of a transform make sense.

use crate::config::TransformConfig;
use crate::{Error, Result};

/// Refuses numbers that no image could be transformed with.
pub(super) fn numbers(step: &TransformConfig) -> Result<()> {
    let wrong = |what: String| Err(Error::usage(format!("`{}`: {what}", step.name())));
    let size = match step {
        TransformConfig::Resize { size, .. } => *size,
        TransformConfig::RandomCrop { size, .. }
        | TransformConfig::RandomResizedCrop { size, .. }
        | TransformConfig::CenterCrop { size }
        | TransformConfig::Pad { size } => Some(*size),
        _ => None,
    };
    if let Some([height, width]) = size
        && (height == 0 || width == 0)
    {
        return wrong(format!("size [{height}, {width}] has no pixels"));
    }
    let range = |what: &str, [low, high]: [f64; 2], least: f64| {
        let good = low.is_finite() && high.is_finite() && low <= high && low >= least;
        if good {
            Ok(())
        } else {
            wrong(format!("{what} [{low}, {high}] must rise and start at {least} or above"))
        }
    };
    let share = |what: &str, value: f64| {
        if (0.0..=1.0).contains(&value) {
            Ok(())
        } else {
            wrong(format!("{what} {value} must lie in 0 to 1"))
        }
    };
    match step {
        TransformConfig::Resize { ratio_range, multiple_of, .. } => {
            if *multiple_of == Some(0) {
                return wrong("multiple_of must not be 0".into());
            }
            range("ratio_range", *ratio_range, 1e-3)
        }
        TransformConfig::ResizeShortestEdge { sizes, max_size } => {
            if sizes.is_empty() || sizes.contains(&0) {
                return wrong("sizes must list lengths of 1 or more".into());
            }
            match sizes.iter().find(|edge| *edge > max_size) {
                Some(edge) => wrong(format!("the edge {edge} is above max_size {max_size}")),
                None => Ok(()),
            }
        }
        TransformConfig::RandomCrop { cat_max_ratio, .. } => share("cat_max_ratio", *cat_max_ratio),
        TransformConfig::RandomResizedCrop { scale, .. } => {
            range("scale", *scale, 1e-6).and(share("scale", scale[1]))
        }
        TransformConfig::RandomFlip { prob } => share("prob", *prob),
        TransformConfig::PhotometricDistortion { contrast, saturation, brightness, hue } => {
            range("contrast", *contrast, 0.0).and(range("saturation", *saturation, 0.0))?;
            range("brightness", [-brightness, *brightness], f64::MIN).and(range(
                "hue",
                [-hue, *hue],
                -180.0,
            ))
        }
        TransformConfig::ColorJitter { brightness, contrast, saturation, hue } => {
            let factors = [*brightness, *contrast, *saturation];
            range("the largest change", [0.0, factors.into_iter().fold(0.0, f64::max)], 0.0)?;
            match factors.iter().all(|v| *v >= 0.0) && (0.0..=0.5).contains(hue) {
                true => Ok(()),
                false => wrong("changes must be at least 0 and hue at most 0.5".into()),
            }
        }
        TransformConfig::RandAugment { magnitude, magnitude_std, .. } => {
            range("magnitude", [*magnitude, 30.0], 0.0)?;
            range("magnitude_std", [0.0, *magnitude_std], 0.0)
        }
        TransformConfig::RandomErasing { prob, area, ratio, .. } => {
            share("prob", *prob)?;
            range("area", *area, 1e-6).and(share("area", area[1]))?;
            range("ratio", *ratio, 1e-6)
        }
        TransformConfig::Normalize { std, .. } if std.iter().any(|s| *s <= 0.0) => {
            wrong("std must be positive".into())
        }
        _ => Ok(()),
    }
}
