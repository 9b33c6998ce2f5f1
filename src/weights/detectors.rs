//! Detection heads of detectron2 and torchvision under this crate's names, which are those of torchvision's present code,
//! with class 0 for the background.
//!
//! | detectron2 | torchvision's published files | here |
//! |---|---|---|
//! | `proposal_generator.rpn_head.conv.conv1` (or `conv`) | `rpn.head.conv` | `rpn.head.conv.1.0` |
//! | `proposal_generator.rpn_head.objectness_logits`, `.anchor_deltas` | | `rpn.head.cls_logits`, `.bbox_pred` |
//! | `roi_heads.box_head.conv1`, `.conv1.norm`, `.fc1` | | `roi_heads.box_head.0.0`, `.0.1`, `.5` (after four convolutions) |
//! | `roi_heads.box_head.fc1`, `.fc2` without convolutions | `roi_heads.box_head.fc6`, `.fc7` | the same |
//! | `roi_heads.mask_head.mask_fcn1`, `.mask_fcn1.norm` | `roi_heads.mask_head.mask_fcn1` | `roi_heads.mask_head.0.0`, `.0.1` |
//! | `roi_heads.mask_head.deconv`, `.predictor` | | `roi_heads.mask_predictor.conv5_mask`, `.mask_fcn_logits` |
//!
//! detectron2 has the background's score last, and neither boxes nor masks of it. A cascade's stages have their number after
//! `box_head` and `box_predictor` in both.

use candle_core::{Result, Tensor};

use super::checkpoint::Tensors;

/// A head's tensor of detectron2 under its new name; `convs` is the number of convolutions of the box head. Unknown names
/// stay as they are, so that the report shows them; `None` for what is no weight.
///
/// # Errors
/// If tensor arithmetic fails.
pub(super) fn detectron2(
    name: &str,
    tensor: &Tensor,
    convs: usize,
) -> Result<Option<(String, Tensor)>> {
    let whole = |new: String| Ok(Some((new, tensor.clone())));
    if name.contains("anchor_generator.") || name.starts_with("pixel_") {
        return Ok(None);
    }
    if let Some(rest) = name.strip_prefix("proposal_generator.rpn_head.") {
        return whole(format!("rpn.head.{}", rpn(rest)));
    }
    if let Some(rest) = name.strip_prefix("roi_heads.box_predictor.") {
        let rows = if rest.contains("cls_score.") {
            background_first(tensor)?
        } else if tensor.dim(0)? == 4 {
            // One box for all classes.
            tensor.clone()
        } else {
            with_background(tensor, 4)?
        };
        return Ok(Some((name.to_owned(), rows)));
    }
    if let Some(rest) = name.strip_prefix("roi_heads.box_head.") {
        let (stage, layer) = match rest.split_once('.') {
            Some((stage, layer)) if stage.parse::<usize>().is_ok() => (format!("{stage}."), layer),
            _ => (String::new(), rest),
        };
        return whole(format!("roi_heads.box_head.{stage}{}", box_head(layer, convs)));
    }
    if let Some(rest) = name.strip_prefix("roi_heads.mask_head.") {
        if let Some(parameter) = rest.strip_prefix("predictor.") {
            let name = format!("roi_heads.mask_predictor.mask_fcn_logits.{parameter}");
            return Ok(Some((name, with_background(tensor, 1)?)));
        }
        if let Some(parameter) = rest.strip_prefix("deconv.") {
            return whole(format!("roi_heads.mask_predictor.conv5_mask.{parameter}"));
        }
        return whole(format!("roi_heads.mask_head.{}", mask_head(rest)));
    }
    whole(name.to_owned())
}

/// The new name of a tensor of torchvision's detectors; nothing for those of its backbones.
pub(super) fn torchvision(name: &str) -> Option<String> {
    if name.starts_with("backbone.") {
        return None;
    }
    Some(if let Some(rest) = name.strip_prefix("rpn.head.") {
        format!("rpn.head.{}", rpn(rest))
    } else if let Some(rest) = name.strip_prefix("roi_heads.mask_head.") {
        format!("roi_heads.mask_head.{}", mask_head(rest))
    } else {
        name.to_owned()
    })
}

/// How many convolutions detectron2's box heads have.
pub(super) fn box_convolutions(tensors: &Tensors) -> usize {
    let number = |name: &String| {
        let (layer, _) =
            name.strip_prefix("roi_heads.box_head.")?.split_once("conv")?.1.split_once('.')?;
        layer.parse().ok()
    };
    tensors.keys().filter_map(number).max().unwrap_or(0)
}

/// What follows `rpn.head.`.
fn rpn(rest: &str) -> String {
    if let Some(parameter) = rest.strip_prefix("objectness_logits.") {
        return format!("cls_logits.{parameter}");
    }
    if let Some(parameter) = rest.strip_prefix("anchor_deltas.") {
        return format!("bbox_pred.{parameter}");
    }
    let Some(conv) = rest.strip_prefix("conv.") else { return rest.to_owned() };
    match conv.split_once('.') {
        // `conv.weight` of a single convolution, `conv.conv1.weight` of several, `conv.0.0.weight` already.
        None => format!("conv.0.0.{conv}"),
        Some((layer, parameter)) => match layer.strip_prefix("conv") {
            Some(number) => format!("conv.{number}.0.{parameter}"),
            None => rest.to_owned(),
        },
    }
}

/// What follows `roi_heads.box_head.` and the stage.
fn box_head(rest: &str, convs: usize) -> String {
    let numbered = |kind: &str| -> Option<(usize, &str)> {
        let (number, parameter) = rest.strip_prefix(kind)?.split_once('.')?;
        // They count from 1.
        Some((number.parse::<usize>().ok()?.checked_sub(1)?, parameter))
    };
    match (numbered("conv"), numbered("fc")) {
        (Some((conv, parameter)), _) => normalised(conv, parameter),
        (None, Some((fc, parameter))) if convs == 0 => format!("fc{}.{parameter}", 6 + fc),
        // Flattening and each ReLU have a number too.
        (None, Some((fc, parameter))) => format!("{}.{parameter}", convs + 1 + 2 * fc),
        (None, None) => rest.to_owned(),
    }
}

/// What follows `roi_heads.mask_head.`.
fn mask_head(rest: &str) -> String {
    let conv = rest.strip_prefix("mask_fcn").and_then(|rest| {
        let (number, parameter) = rest.split_once('.')?;
        Some((number.parse::<usize>().ok()?.checked_sub(1)?, parameter))
    });
    conv.map_or_else(|| rest.to_owned(), |(conv, parameter)| normalised(conv, parameter))
}

/// Convolution `i` and the norm behind it.
fn normalised(i: usize, parameter: &str) -> String {
    match parameter.strip_prefix("norm.") {
        Some(parameter) => format!("{i}.1.{parameter}"),
        None => format!("{i}.0.{parameter}"),
    }
}

/// The last row first.
fn background_first(rows: &Tensor) -> Result<Tensor> {
    let last = rows.dim(0)?.saturating_sub(1);
    Tensor::cat(&[rows.narrow(0, last, 1)?, rows.narrow(0, 0, last)?], 0)
}

/// `count` rows of zeros first: those of a class that nobody reads.
fn with_background(rows: &Tensor, count: usize) -> Result<Tensor> {
    rows.pad_with_zeros(0, count, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn renamed(name: &str, rows: &[f32]) -> (String, Vec<f32>) {
        let tensor = Tensor::new(rows, &Device::Cpu).unwrap();
        let (name, tensor) = detectron2(name, &tensor, 4).unwrap().unwrap();
        (name, tensor.to_vec1().unwrap())
    }

    #[test]
    fn class_rows_move_to_behind_the_background() {
        let (name, rows) = renamed("roi_heads.box_predictor.2.cls_score.bias", &[1.0, 2.0, 9.0]);
        assert_eq!(name, "roi_heads.box_predictor.2.cls_score.bias");
        assert_eq!(rows, [9.0, 1.0, 2.0]);
        let (_, rows) = renamed("roi_heads.box_predictor.bbox_pred.bias", &[1.0; 8]);
        assert_eq!(rows, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let (_, rows) = renamed("roi_heads.box_predictor.0.bbox_pred.bias", &[1.0; 4]);
        assert_eq!(rows, [1.0; 4]);
        let (name, rows) = renamed("roi_heads.mask_head.predictor.bias", &[5.0, 6.0]);
        assert_eq!(name, "roi_heads.mask_predictor.mask_fcn_logits.bias");
        assert_eq!(rows, [0.0, 5.0, 6.0]);
    }

    #[test]
    fn layers_are_numbered_as_torchvision_does() {
        let name = |name: &str, convs: usize| {
            let tensor = Tensor::new(&[0f32], &Device::Cpu).unwrap();
            detectron2(name, &tensor, convs).unwrap().map(|(name, _)| name).unwrap_or_default()
        };
        assert_eq!(name("roi_heads.box_head.fc2.weight", 0), "roi_heads.box_head.fc7.weight");
        assert_eq!(name("roi_heads.box_head.fc1.weight", 4), "roi_heads.box_head.5.weight");
        assert_eq!(name("roi_heads.box_head.1.fc2.bias", 4), "roi_heads.box_head.1.7.bias");
        assert_eq!(
            name("roi_heads.box_head.2.conv3.norm.bias", 4),
            "roi_heads.box_head.2.2.1.bias"
        );
        let rpn = "proposal_generator.rpn_head.conv";
        assert_eq!(name(&format!("{rpn}.weight"), 0), "rpn.head.conv.0.0.weight");
        assert_eq!(name(&format!("{rpn}.conv1.bias"), 0), "rpn.head.conv.1.0.bias");
        assert_eq!(name("proposal_generator.anchor_generator.cell_anchors.0", 0), "");
        assert_eq!(torchvision("rpn.head.conv.bias").unwrap(), "rpn.head.conv.0.0.bias");
        assert_eq!(torchvision("rpn.head.conv.1.0.bias").unwrap(), "rpn.head.conv.1.0.bias");
        assert_eq!(torchvision("backbone.fpn.inner_blocks.0.weight"), None);
    }
}
