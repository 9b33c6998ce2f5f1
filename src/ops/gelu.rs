//! The Gaussian error linear unit, in its exact (erf) form.

use candle_core::{Result, Tensor};

/// x/2 · (1 + erf(x / √2)).
///
/// # Errors
/// If the type is not a floating-point type.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}
