//! Distillation from the complete model into the one that skips (\[DyT\] §3.5).

use candle_core::{Result, Tensor};

use crate::head::Term;
use crate::ops;

/// The term `distill`: KL(sg(softmax(complete)) ‖ softmax(student)) over the classes on dimension 1, summed over images and
/// positions, counted by them.
///
/// # Errors
/// If the logits differ in shape.
pub fn distill_term(complete: &Tensor, student: &Tensor, weight: f64) -> Result<Term> {
    let per_position = ops::kl_div(complete, student, 1)?;
    let (sum, count) = (per_position.sum_all()?, per_position.elem_count());
    Ok(Term { name: "distill", weight, sum, count: count as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_divergence_is_that_of_the_definition() -> Result<()> {
        let logits = |p: [f32; 2]| Tensor::new(&[p], &Device::Cpu)?.log();
        let term = distill_term(&logits([0.75, 0.25])?, &logits([0.5, 0.5])?, 1.0)?;
        let want = 0.75 * 1.5f32.ln() + 0.25 * 0.5f32.ln();
        assert!((term.sum.to_scalar::<f32>()? - want).abs() < 1e-6);
        assert_eq!(term.count, 1.0);
        Ok(())
    }
}
