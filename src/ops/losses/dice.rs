//! The Dice loss of segmentation, as mmseg's `DiceLoss`.

use candle_core::{D, Result, Tensor, bail};

/// How logits become what is compared with the labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dice {
    /// The label that is left out.
    pub ignore_index: u32,
    /// Added to both parts of the denominator.
    pub eps: f64,
}

impl Default for Dice {
    /// 255 is left out; eps 1e-3.
    fn default() -> Self {
        Self { ignore_index: 255, eps: 1e-3 }
    }
}

/// Σ over images of 1 − 2⟨p, t⟩ / (⟨p, p⟩ + eps + ⟨t, t⟩ + eps) with p = softmax(logits) over classes and t the labels as
/// one-hot maps, and the number of images.
///
/// `logits`: `[B, K, …]`, `labels`: u32 `[B, …]`. Departs from mmseg, where ignored positions are left out of t alone: there
/// they count in ⟨p, p⟩ and push every class down.
///
/// # Errors
/// If the shapes do not fit together or a label is neither a class nor ignored.
pub fn dice(logits: &Tensor, labels: &Tensor, opts: &Dice) -> Result<(Tensor, f64)> {
    let entropy = super::CrossEntropy { ignore_index: opts.ignore_index, class_weights: None };
    let (labels, counts) = super::cross_entropy::check(logits, labels, &entropy)?;
    let (batch, classes) = (logits.dim(0)?, logits.dim(1)?);
    if batch * classes == 0 {
        bail!("dice: no logits in {:?}", logits.dims());
    }
    let counts = counts.reshape((batch, 1, ()))?;
    let probability = candle_nn::ops::softmax(&logits.reshape((batch, classes, ()))?, 1)?
        .broadcast_mul(&counts)?;
    let chosen = probability.gather(&labels.reshape((batch, 1, ()))?.contiguous()?, 1)?;
    // Both are 0 at ignored positions, so the products run over the others alone.
    let overlap = chosen.sum((1, 2))?;
    let predicted = probability.sqr()?.sum(D::Minus1)?.sum(D::Minus1)?;
    let labelled = counts.sum((1, 2))?;
    let quotient = ((overlap * 2.0)? / ((predicted + labelled)? + 2.0 * opts.eps)?)?;
    Ok((quotient.affine(-1.0, 1.0)?.sum_all()?, batch as f64))
}
