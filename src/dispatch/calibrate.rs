//! Thresholds that make the deterministic share meet a budget.
//!
//! Training holds the *noisy* share at r; without noise the published threshold keeps another share. One quantile over
//! the logits of all layers keeps the learned preference between layers, but cutting upstream shifts the logits
//! downstream, so a single pass misses the budget. Here each pass goes layer by layer with the layers above already cut
//! and gives every layer the share that the common quantile of the last pass's logits gave it; so each pass meets the
//! budget on its images, and repeating it lets the shares settle at one common threshold under the cut.

use candle_core::{DType, Result, Tensor, bail};

use super::{Gate, Pass, Selector};
use crate::backbone::{TokenGrid, Vit};
use crate::config::{DispatchConfig, Inference};

/// Passes in which the shares settle.
const PASSES: usize = 2;

/// The thresholds (one per dispatcher) with which `vit` keeps the share `q` of the patch tokens of `batches`, each
/// `[B, 3, H, W]`; they are stored in `vit` too. Costs three forward passes without gradients; deterministic.
///
/// # Errors
/// If `q` is no share, there are no images, or the model has no learned dispatcher.
pub fn calibrate(vit: &Vit, batches: &[Tensor], q: f64) -> Result<Vec<f32>> {
    calibrate_clips(vit, batches, 1, q)
}

/// [`calibrate`] on clips of `frames` frames each, the frames of a clip adjacent in its batch.
///
/// # Errors
/// As [`calibrate`].
pub fn calibrate_clips(vit: &Vit, batches: &[Tensor], frames: usize, q: f64) -> Result<Vec<f32>> {
    if !(0.0..=1.0).contains(&q) {
        bail!("the share of active tokens must lie in [0, 1], got {q}");
    }
    if batches.is_empty() || vit.dispatchers() == 0 {
        bail!("calibration needs images and a model with learned dispatchers");
    }
    // The published threshold gives the first logits.
    let clips = Clips { batches, frames };
    let mut pass = cut(vit, clips, |_, _| 0.0)?;
    for _ in 0..PASSES {
        let shares = common_shares(&pass.logits, q);
        pass = cut(vit, clips, |number, logits| threshold_keeping(shares[number], logits))?;
    }
    vit.set_thresholds(pass.thresholds.clone());
    Ok(pass.thresholds)
}

/// Images `[B·T, 3, H, W]` in clips of T frames.
#[derive(Clone, Copy)]
struct Clips<'a> {
    batches: &'a [Tensor],
    frames: usize,
}

/// One pass over all dispatchers.
struct Cut {
    thresholds: Vec<f32>,
    /// Per dispatcher the logits of all patches of all images, under the cut of those before it.
    logits: Vec<Vec<f32>>,
}

/// Goes dispatcher by dispatcher; `choose(number, logits)` fixes a threshold before the tokens that it lets pass work.
fn cut(vit: &Vit, clips: Clips, choose: impl Fn(usize, &[f32]) -> f32) -> Result<Cut> {
    let cfg = DispatchConfig { inference: Inference::Calibrated(0.0), ..vit.dispatch().clone() };
    let (prefix, trunk) = (vit.prefix(), vit.inference()?);
    let start = |images: &Tensor| -> Result<_> {
        let ((x, padded), (_, _, height, width)) = (vit.embed(images, &trunk)?, images.dims4()?);
        let selector = Selector::new(&Pass::Infer, &cfg, None, prefix)
            .cropping(padded, vit.dims().grid((height, width)));
        Ok((x.detach(), padded, selector))
    };
    let mut batches = clips.batches.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut result = Cut { thresholds: Vec::new(), logits: Vec::new() };
    for block in &trunk.blocks {
        for (x, padded, _) in &mut batches {
            *x = block.enter(x, TokenGrid { grid: *padded, frames: clips.frames })?;
        }
        for stage in block.stages() {
            if !matches!(stage.gate, Gate::Open) {
                let mut logits = Vec::new();
                for (x, _, selector) in &batches {
                    let logit = selector.recorded_logits(&stage.gate, x)?.flatten_all()?;
                    logits.extend(logit.to_dtype(DType::F32)?.to_vec1::<f32>()?);
                }
                let threshold = choose(result.thresholds.len(), &logits);
                batches.iter_mut().for_each(|(.., selector)| selector.add_threshold(threshold));
                result.thresholds.push(threshold);
                result.logits.push(logits);
            }
            for (x, padded, selector) in &mut batches {
                *x = block.pass(stage, x, *padded, selector)?.detach();
            }
        }
    }
    Ok(result)
}

/// The share of each layer above the one threshold that keeps the share `q` of all layers together.
fn common_shares(logits: &[Vec<f32>], q: f64) -> Vec<f64> {
    let all: Vec<f32> = logits.concat();
    let threshold = threshold_keeping(q, &all);
    let share = |layer: &Vec<f32>| {
        layer.iter().filter(|&&z| z > threshold).count() as f64 / layer.len() as f64
    };
    logits.iter().map(share).collect()
}

/// The threshold above which the share `share` of `logits` lies (rounded to whole tokens; fewer at ties); finite, because a
/// checkpoint's JSON has no infinity.
fn threshold_keeping(share: f64, logits: &[f32]) -> f32 {
    let mut falling = logits.to_vec();
    falling.sort_by(|a, b| b.total_cmp(a));
    let kept = (share * logits.len() as f64).round() as usize;
    match (kept.checked_sub(1).and_then(|last| falling.get(last)), falling.get(kept)) {
        // What was pruned has infinitely low logits.
        (Some(_), Some(&f32::NEG_INFINITY)) => f32::MIN,
        // Halfway between the last kept and the first skipped logit, so that rounding decides nothing.
        (Some(&last), Some(&next)) => next + (last - next) / 2.0,
        (None, _) => f32::MAX,
        (Some(_), None) => f32::MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_keeps_the_share() {
        let logits = [0.5, -1.0, 2.0, 0.0];
        let kept =
            |share| logits.iter().filter(|&&z| z > threshold_keeping(share, &logits)).count();
        assert_eq!([kept(0.0), kept(0.25), kept(0.5), kept(0.75), kept(1.0)], [0, 1, 2, 3, 4]);
        let pruned = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 2.0];
        let kept = |share| {
            let threshold = threshold_keeping(share, &pruned);
            (threshold.is_finite(), pruned.iter().filter(|&&z| z > threshold).count())
        };
        assert_eq!([kept(0.25), kept(0.5), kept(1.0)], [(true, 1), (true, 2), (true, 2)]);
    }

    #[test]
    fn one_quantile_keeps_the_preference_between_layers() {
        let logits = [vec![3.0, 4.0, 5.0, -1.0], vec![0.0, 1.0, -2.0, -3.0]];
        assert_eq!(common_shares(&logits, 0.5), [0.75, 0.25]);
    }
}
