//! Losses of single values and of pairs of distributions.

use candle_core::{Result, Tensor};

/// Binary cross-entropy of every element: log(1 + exp(x)) − x·t for logits x and targets t in \[0, 1\] of the same shape.
///
/// # Errors
/// If the shapes differ.
pub fn bce_with_logits(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    softplus(logits)? - (logits * targets)?
}

/// log(1 + exp(x)) without overflow, and with the right gradient at 0 (where |x| and max(x, 0) have none).
fn softplus(x: &Tensor) -> Result<Tensor> {
    let largest = x.detach().relu()?;
    ((x - &largest)?.exp()? + largest.neg()?.exp()?)?.log()? + largest
}

/// Kullback–Leibler divergence Σ P log(P / Q) over the classes on `dim`, P = softmax(teacher), Q = softmax(student): the
/// shape of the logits without `dim`. No gradient reaches the teacher.
///
/// # Errors
/// If the shapes differ or have no such dimension.
pub fn kl_div(teacher_logits: &Tensor, student_logits: &Tensor, dim: usize) -> Result<Tensor> {
    let teacher = candle_nn::ops::log_softmax(&teacher_logits.detach(), dim)?;
    let student = candle_nn::ops::log_softmax(student_logits, dim)?;
    (teacher.exp()? * (teacher - student)?)?.sum(dim)
}

/// Smooth L1 of every difference d: d² / (2·beta) where |d| < beta, |d| − beta / 2 elsewhere; `beta` 0 is L1.
///
/// # Errors
/// If the tensor is not of floats.
pub fn smooth_l1(d: &Tensor, beta: f64) -> Result<Tensor> {
    let size = d.abs()?;
    if beta <= 0.0 {
        return Ok(size);
    }
    let near = size.lt(beta)?;
    near.where_cond(&(d.sqr()? * (0.5 / beta))?, &(size - 0.5 * beta)?)
}
