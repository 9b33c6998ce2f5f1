//! The kinds `nms`, `batched_nms`, `soft_nms`, `box_coder`, `anchors` and `match`.

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, Var};
use rescatter::boxes::{BoxCoder, Decay, batched_nms, batched_soft_nms, clip, iou, nms};
use rescatter::ops;
use rescatter_heads::mask_rcnn::anchors::level_anchors;
use rescatter_heads::mask_rcnn::matcher::{Label, LowQuality, Matcher};

use super::{Fixture, Outputs};

/// A tensor of indices.
pub(super) fn indices(values: impl IntoIterator<Item = usize>) -> Result<Tensor> {
    let values: Vec<i64> = values.into_iter().map(|i| i as i64).collect();
    Ok(Tensor::new(values, &Device::Cpu)?)
}

/// A tensor `[N, 4]`.
pub(super) fn tensor(boxes: &[[f32; 4]]) -> Result<Tensor> {
    Ok(Tensor::from_vec(boxes.concat(), (boxes.len(), 4), &Device::Cpu)?)
}

/// `nms`: the survivors.
pub(super) fn plain_nms(fixture: &Fixture) -> Result<Option<Outputs>> {
    let scores: Vec<f32> = fixture.values("scores")?;
    let kept = nms(&fixture.boxes("boxes")?, &scores, fixture.hyper("threshold")?);
    Ok(Some(Outputs::from([("output.keep".into(), indices(kept)?)])))
}

fn groups(fixture: &Fixture) -> Result<Vec<u32>> {
    let groups: Vec<i64> = fixture.values("group")?;
    Ok(groups.into_iter().map(u32::try_from).collect::<Result<_, _>>()?)
}

/// `batched_nms`: the survivors of groups.
pub(super) fn grouped_nms(fixture: &Fixture) -> Result<Option<Outputs>> {
    let scores: Vec<f32> = fixture.values("scores")?;
    let threshold = fixture.hyper("threshold")?;
    let kept = batched_nms(&fixture.boxes("boxes")?, &scores, &groups(fixture)?, threshold);
    Ok(Some(Outputs::from([("output.keep".into(), indices(kept)?)])))
}

/// `soft_nms`: the survivors of groups and their decayed scores.
pub(super) fn decayed_nms(fixture: &Fixture) -> Result<Option<Outputs>> {
    let scores: Vec<f32> = fixture.values("scores")?;
    let decay = match fixture.hyper::<String>("decay")?.as_str() {
        "linear" => Decay::Linear(fixture.hyper("iou")?),
        "gaussian" => Decay::Gaussian(fixture.hyper("sigma")?),
        other => bail!("unknown decay `{other}`"),
    };
    let min_score = fixture.hyper("min_score")?;
    let boxes = fixture.boxes("boxes")?;
    let kept = batched_soft_nms(&boxes, &scores, &groups(fixture)?, decay, min_score);
    let (kept, scores): (Vec<usize>, Vec<f32>) = kept.into_iter().unzip();
    Ok(Some(Outputs::from([
        ("output.keep".into(), indices(kept)?),
        ("output.scores".into(), Tensor::new(scores, &Device::Cpu)?),
    ])))
}

/// `box_coder`: deltas of boxes, boxes of deltas, and the gradient of the latter.
pub(super) fn coder(fixture: &Fixture) -> Result<Option<Outputs>> {
    let coder = BoxCoder { weights: fixture.hyper("weights")? };
    let (sources, targets) = (fixture.boxes("source")?, fixture.boxes("target")?);
    let encoded: Vec<[f32; 4]> =
        sources.iter().zip(&targets).map(|(s, t)| coder.encode(*s, *t)).collect();
    let deltas = Var::from_tensor(&fixture.input("deltas")?)?;
    let per_source = deltas.dim(1)? / 4;
    let all = fixture.boxes("deltas")?;
    let decoded: Vec<[f32; 4]> =
        all.iter().enumerate().map(|(i, d)| coder.decode(sources[i / per_source], *d)).collect();
    let size: [usize; 2] = fixture.hyper("image")?;
    let clipped: Vec<[f32; 4]> = decoded.iter().map(|b| clip(*b, (size[0], size[1]))).collect();
    // The differentiable form; its value is compared too, below the host's.
    let tracked = ops::decode_boxes(&fixture.input("source")?, &deltas, coder)?;
    let shaped =
        |boxes: &[[f32; 4]]| Ok::<_, anyhow::Error>(tensor(boxes)?.reshape(deltas.shape())?);
    let apart = super::difference(&tracked, &shaped(&decoded)?)?;
    let tolerance = fixture.tolerances.get("output.decoded").copied().unwrap_or(0.0);
    if apart.is_nan() || apart > tolerance {
        bail!("boxes decoded on the host and as tensors differ by {apart:e}");
    }
    let grads = (tracked * fixture.input("grad_out.decoded")?)?.sum_all()?.backward()?;
    Ok(Some(Outputs::from([
        ("output.encoded".into(), tensor(&encoded)?),
        ("output.decoded".into(), shaped(&decoded)?),
        ("output.clipped".into(), shaped(&clipped)?),
        ("grad.input.deltas".into(), grads.get(&deltas).context("no gradient")?.clone()),
    ])))
}

/// `anchors`: those of every level.
pub(super) fn anchors(fixture: &Fixture) -> Result<Option<Outputs>> {
    let sizes: Vec<f32> = fixture.hyper("sizes")?;
    let ratios: Vec<f32> = fixture.hyper("ratios")?;
    let strides: Vec<f32> = fixture.hyper("strides")?;
    let shapes: Vec<(usize, usize)> = fixture.hyper("shapes")?;
    let mut outputs = Outputs::new();
    for (l, ((size, stride), shape)) in sizes.into_iter().zip(strides).zip(shapes).enumerate() {
        let level = level_anchors(size, &ratios, stride, shape);
        outputs.insert(format!("output.anchors.{l}"), tensor(&level)?);
    }
    Ok(Some(outputs))
}

fn label(number: i64) -> Result<Label> {
    Ok(match number {
        -1 => Label::Ignored,
        0 => Label::Negative,
        1 => Label::Positive,
        _ => bail!("unknown label {number}"),
    })
}

/// `match`: the best object of every box, and what the box is.
pub(super) fn matches(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (objects, boxes) = (fixture.boxes("gt_boxes")?, fixture.boxes("boxes")?);
    let labels: Vec<i64> = fixture.hyper("labels")?;
    let matcher = Matcher {
        thresholds: fixture.hyper("thresholds")?,
        labels: labels.into_iter().map(label).collect::<Result<_>>()?,
        low_quality: match fixture.hyper("allow_low_quality")? {
            true => LowQuality::Match,
            false => LowQuality::Leave,
        },
    };
    let found = matcher.assign(&objects, &boxes);
    let overlaps = objects.iter().flat_map(|o| boxes.iter().map(|b| iou(*o, *b)));
    let overlaps: Vec<f32> = overlaps.collect();
    let labels: Vec<i64> = found
        .labels
        .iter()
        .map(|label| match label {
            Label::Ignored => -1,
            Label::Negative => 0,
            Label::Positive => 1,
        })
        .collect();
    let shape = (objects.len(), boxes.len());
    Ok(Some(Outputs::from([
        ("output.iou".into(), Tensor::from_vec(overlaps, shape, &Device::Cpu)?),
        ("output.matched".into(), indices(found.matched)?),
        ("output.label".into(), Tensor::new(labels, &Device::Cpu)?),
        ("output.best_iou".into(), Tensor::new(found.best, &Device::Cpu)?),
    ])))
}
