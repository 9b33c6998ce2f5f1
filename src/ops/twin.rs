//! Holds the fused form of an operation equal to its composed one, for the unit tests of this module.

use candle_core::{DType, Result, Tensor, Var};

use super::gradcheck::{normal, relative_difference};
use super::{composed, kernel_calls};

/// Standard normal f32 values.
pub(crate) fn random(shape: &[usize], seed: u64) -> Result<Tensor> {
    normal(shape, seed)?.to_dtype(DType::F32)
}

/// Asserts that `f` gives the same value and the same gradient of every input in both forms, to `tolerance` of the largest
/// value, and that the kernel `name` ran. The output is used twice, as a residual connection would.
pub(crate) fn assert_twins(
    name: &str,
    tolerance: f64,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let run = |inputs: &[Tensor]| -> Result<(Tensor, Vec<Tensor>)> {
        let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        let weights = random(y.dims(), 77)?.to_device(y.device())?;
        let grads = ((&y * &weights)?.sum_all()? + (&y * 0.25)?.sum_all()?)?.backward()?;
        let grads = tensors
            .iter()
            .map(|t| grads.get(t).cloned().unwrap_or_else(|| panic!("{name}: no gradient")));
        Ok((y, grads.collect()))
    };
    let before = kernel_calls(name);
    let (fused, fused_grads) = run(inputs)?;
    assert!(kernel_calls(name) > before, "the kernel {name} did not run");
    let (plain, plain_grads) = composed(|| run(inputs))?;
    let difference = relative_difference(&fused, &plain)?;
    assert!(difference <= tolerance, "{name}: values differ by {difference:e}");
    for (i, (a, b)) in fused_grads.iter().zip(&plain_grads).enumerate() {
        let difference = relative_difference(a, b)?;
        assert!(difference <= tolerance, "{name}: gradients of input {i} differ by {difference:e}");
    }
    Ok(())
}
