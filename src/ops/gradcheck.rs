//! Checks written derivatives against finite differences; for tests.

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use crate::rng::{Purpose, Rng};

/// Standard normal values in f64 on the CPU, the same for the same `seed`.
///
/// # Errors
/// If memory runs out.
pub fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut stream = Rng::new(seed).stream(Purpose::Synthetic, 0, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| stream.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Compares the gradient of ⟨f(inputs), fixed random weights⟩ with central differences, for every element of every input
/// (f64, so keep them small).
///
/// # Errors
/// If `f` fails, a gradient is absent, or an element differs by more than 1e-6 of max(1, its size); the message names it.
pub fn check(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Result<()> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let output = f(&tensors)?;
    let weights = normal(output.dims(), 99)?;
    let grads = (&output * &weights)?.sum_all()?.backward()?;
    for (i, input) in inputs.iter().enumerate() {
        let Some(grad) = grads.get(&tensors[i]) else { bail!("no gradient for input {i}") };
        let grad = grad.flatten_all()?.to_vec1::<f64>()?;
        let values = input.flatten_all()?.to_vec1::<f64>()?;
        for (j, (&value, &analytic)) in values.iter().zip(&grad).enumerate() {
            let step = 1e-5;
            let loss_at = |moved: f64| -> Result<f64> {
                let mut values = values.clone();
                values[j] = moved;
                let mut inputs = inputs.to_vec();
                inputs[i] = Tensor::from_vec(values, input.shape(), &Device::Cpu)?;
                (f(&inputs)? * &weights)?.sum_all()?.to_scalar()
            };
            let numeric = (loss_at(value + step)? - loss_at(value - step)?) / (2.0 * step);
            if (numeric - analytic).abs() > 1e-6 * numeric.abs().max(1.0) {
                bail!("input {i}, element {j}: finite difference {numeric}, gradient {analytic}");
            }
        }
    }
    Ok(())
}

/// The largest |a − b| divided by the largest |b| (at least 1e-6).
///
/// # Errors
/// If the shapes differ.
pub fn relative_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    let largest =
        |t: Tensor| t.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
    Ok(largest((a - b)?)? / largest(b.clone())?.max(1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_gradient_is_found() -> Result<()> {
        let x = normal(&[3], 1)?;
        check(|t| &t[0] * &t[0], std::slice::from_ref(&x))?;
        // Half of the dependence is hidden from the gradient.
        let error = check(|t| &t[0] * t[0].detach(), &[x]).unwrap_err().to_string();
        assert!(error.contains("input 0, element 0"), "{error}");
        Ok(())
    }
}
