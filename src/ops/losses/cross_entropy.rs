//! Cross-entropy over classes on dimension 1.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};

use super::fused::{CrossEntropyOp, Targets};
use super::resized::ResizedCrossEntropy;
use crate::ops::resize::{Interpolation, axis};
use crate::ops::{fusible, resize_bilinear};

/// Which labels count, and how much.
#[derive(Debug, Clone)]
pub struct CrossEntropy {
    /// The label that is left out.
    pub ignore_index: u32,
    /// `[K]`: what a position of each class counts; `None`: 1.
    pub class_weights: Option<Tensor>,
}

impl Default for CrossEntropy {
    /// 255 is left out, every class counts 1.
    fn default() -> Self {
        Self { ignore_index: 255, class_weights: None }
    }
}

/// Σ over positions of `−weight[label] · log softmax(logits)[label]`, and `Σ weight[label]` (the number of positions that are
/// not ignored if there are no class weights): their quotient is torch's mean.
///
/// `logits`: `[B, K, …]`, `labels`: u32 `[B, …]`.
///
/// # Errors
/// If the shapes do not fit together or a label is neither a class nor ignored.
pub fn cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    opts: &CrossEntropy,
) -> Result<(Tensor, f64)> {
    let (labels, weights) = check(logits, labels, opts)?;
    let total = total(&weights)?;
    Ok((losses(logits, &labels, &weights)?.sum_all()?, total))
}

/// `−weight[label] · log softmax(logits)[label]` of every position, 0 where ignored: `[B, …]`.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_per_pixel(
    logits: &Tensor,
    labels: &Tensor,
    opts: &CrossEntropy,
) -> Result<Tensor> {
    let (labels, weights) = check(logits, labels, opts)?;
    losses(logits, &labels, &weights)
}

/// Σ over rows of `−Σ target · log softmax(logits)`, for targets that are shares of the classes: both `[B, K]`.
///
/// # Errors
/// If the shapes differ.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    (candle_nn::ops::log_softmax(logits, 1)? * targets)?.sum_all()?.neg()
}

/// [`cross_entropy`] of the logits `[B, K, h, w]` resized bilinearly (corners not aligned) to the labels `[B, H, W]`, without
/// keeping the resized ones.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_resized(
    logits: &Tensor,
    labels: &Tensor,
    opts: &CrossEntropy,
) -> Result<(Tensor, f64)> {
    let (_, _, low_height, low_width) = logits.dims4()?;
    let (_, height, width) = labels.dims3()?;
    let same = (low_height, low_width) == (height, width);
    if same || !fusible(&[logits]) || logits.elem_count() * labels.elem_count() == 0 {
        return cross_entropy(&resize_bilinear(logits, (height, width))?, labels, opts);
    }
    // A map of the labels' size to check the shapes against; it holds one value.
    let classes = logits.dim(1)?;
    let shape = (logits.dim(0)?, classes, height, width);
    let full = Tensor::zeros(1, logits.dtype(), logits.device())?.broadcast_as(shape)?;
    let (labels, weights) = check(&full, labels, opts)?;
    let mode = Interpolation::Bilinear { align_corners: false };
    let (rows, columns) = (axis(low_height, height, mode), axis(low_width, width, mode));
    let op = ResizedCrossEntropy::new(targets(&labels, &weights)?, &rows, &columns);
    Ok((logits.contiguous()?.apply_op1(op)?, total(&weights)?))
}

fn total(weights: &Tensor) -> Result<f64> {
    weights.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()
}

fn targets(labels: &Tensor, weights: &Tensor) -> Result<Targets> {
    Ok(Targets {
        labels: labels.flatten_all()?.to_vec1()?,
        weights: weights.flatten_all()?.to_vec1()?,
    })
}

/// Online hard example mining: which pixels are trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ohem {
    /// Pixels whose true class is predicted with less than this probability count as hard; without it the
    /// `min_kept` pixels per image with the largest loss do.
    pub thresh: Option<f64>,
    /// At least this many pixels per image are kept (over the whole batch).
    pub min_kept: usize,
}

/// [`cross_entropy`] over the hard pixels only, chosen as by mmseg's `OHEMPixelSampler`. As there, the count is of all pixels
/// that are not ignored, kept or not.
///
/// # Errors
/// As [`cross_entropy`].
pub fn ohem_cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    opts: &CrossEntropy,
    ohem: Ohem,
) -> Result<(Tensor, f64)> {
    let losses = cross_entropy_per_pixel(logits, labels, opts)?;
    let valid: Vec<bool> =
        labels.flatten_all()?.to_vec1::<u32>()?.iter().map(|&l| l != opts.ignore_index).collect();
    let wanted = ohem.min_kept * logits.dim(0)?;
    let keep = match ohem.thresh {
        Some(thresh) => {
            // The probability of the true class, whatever the class weights.
            let plain = CrossEntropy { class_weights: None, ..opts.clone() };
            let plain = cross_entropy_per_pixel(&logits.detach(), labels, &plain)?;
            let probability: Vec<f64> = host(&plain)?.iter().map(|loss| (-loss).exp()).collect();
            below(&probability, &valid, thresh, wanted)
        }
        None => largest(&host(&losses)?, &valid, wanted),
    };
    let count = valid.iter().filter(|&&v| v).count();
    let keep = Tensor::from_vec(keep, losses.shape(), losses.device())?.to_dtype(losses.dtype())?;
    Ok(((losses * keep)?.sum_all()?, count as f64))
}

fn host(x: &Tensor) -> Result<Vec<f64>> {
    x.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

/// Keeps the valid positions strictly below `thresh`, raised so that about `wanted` of them are.
fn below(probability: &[f64], valid: &[bool], thresh: f64, wanted: usize) -> Vec<f32> {
    let mut sorted: Vec<f64> =
        probability.iter().zip(valid).filter(|&(_, &v)| v).map(|(&p, _)| p).collect();
    let Some(last) = sorted.len().checked_sub(1) else { return vec![0.0; valid.len()] };
    let (_, &mut at, _) = sorted.select_nth_unstable_by(wanted.min(last), f64::total_cmp);
    let thresh = thresh.max(at);
    probability.iter().zip(valid).map(|(&p, &v)| if v && p < thresh { 1.0 } else { 0.0 }).collect()
}

/// Keeps the `wanted` valid positions with the largest losses.
fn largest(losses: &[f64], valid: &[bool], wanted: usize) -> Vec<f32> {
    let mut order: Vec<usize> = (0..losses.len()).filter(|&i| valid[i]).collect();
    order.sort_by(|&a, &b| losses[b].total_cmp(&losses[a]));
    let mut keep = vec![0.0; losses.len()];
    for &i in order.iter().take(wanted) {
        keep[i] = 1.0;
    }
    keep
}

/// The labels with the ignored ones replaced by class 0, and the weight of every position (0 where ignored).
pub(super) fn check(
    logits: &Tensor,
    labels: &Tensor,
    opts: &CrossEntropy,
) -> Result<(Tensor, Tensor)> {
    let classes = class_count(logits, labels, opts)?;
    if let Some(label) = stray_label(labels, classes, opts.ignore_index)? {
        bail!(
            "cross_entropy: label {label} is neither one of {classes} classes nor ignored ({})",
            opts.ignore_index
        );
    }
    let counts = labels.ne(opts.ignore_index)?;
    let labels = counts.where_cond(labels, &labels.zeros_like()?)?.contiguous()?;
    let counts = counts.to_dtype(logits.dtype())?;
    let weights = match &opts.class_weights {
        None => counts,
        Some(class_weights) => {
            let chosen =
                class_weights.to_dtype(logits.dtype())?.index_select(&labels.flatten_all()?, 0)?;
            (counts * chosen.reshape(labels.shape())?)?
        }
    };
    Ok((labels, weights))
}

fn class_count(logits: &Tensor, labels: &Tensor, opts: &CrossEntropy) -> Result<usize> {
    let mut wanted = logits.dims().to_vec();
    if wanted.len() < 2 || {
        wanted.remove(1);
        wanted != labels.dims()
    } {
        bail!("cross_entropy: labels {:?} do not fit logits {:?}", labels.dims(), logits.dims());
    }
    let classes = logits.dim(1)?;
    match &opts.class_weights {
        Some(weights) if weights.dims() != [classes] => {
            bail!("cross_entropy: {:?} class weights for {classes} classes", weights.dims())
        }
        _ => Ok(classes),
    }
}

/// A label that is neither a class nor ignored.
fn stray_label(labels: &Tensor, classes: usize, ignore_index: u32) -> Result<Option<u32>> {
    if labels.dtype() != DType::U32 {
        bail!("cross_entropy: labels must be u32, got {:?}", labels.dtype());
    }
    if labels.elem_count() == 0 {
        return Ok(None);
    }
    let counted = labels.ne(ignore_index)?.where_cond(labels, &labels.zeros_like()?)?;
    let largest = counted.flatten_all()?.max(0)?.to_scalar::<u32>()?;
    Ok((largest as usize >= classes).then_some(largest))
}

fn losses(logits: &Tensor, labels: &Tensor, weights: &Tensor) -> Result<Tensor> {
    if fusible(&[logits]) && logits.elem_count() > 0 {
        let op = CrossEntropyOp { targets: targets(labels, weights)?, log_sums: OnceLock::new() };
        return logits.contiguous()?.apply_op1(op);
    }
    composed(logits, labels, weights)
}

fn composed(logits: &Tensor, labels: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let log_probability = candle_nn::ops::log_softmax(logits, 1)?;
    let chosen = log_probability.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    (chosen * weights)?.neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_label_outside_the_classes_is_an_error_that_names_it() -> Result<()> {
        let logits = Tensor::zeros((1, 3, 2), DType::F32, &Device::Cpu)?;
        let labels = Tensor::new(&[[255u32, 7]], &Device::Cpu)?;
        let message =
            cross_entropy(&logits, &labels, &CrossEntropy::default()).unwrap_err().to_string();
        assert!(message.contains("label 7 is neither one of 3 classes"), "{message}");
        Ok(())
    }
}
