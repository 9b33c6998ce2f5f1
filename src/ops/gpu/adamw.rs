//! One step of AdamW.

use candle_core::{Result, Tensor, Var, bail};

use super::call::{Call, Grid, Number, Output};

/// The factors of a step: β₁, β₂, 1 − ηλ, η / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), ε and the one on the gradient.
pub(in crate::ops) type Factors = [f64; 7];

/// As [`adamw`](crate::ops::optimizer::adamw).
pub(in crate::ops) fn adamw(
    parameter: &Var,
    [m, v]: [&Var; 2],
    gradient: &Tensor,
    factors: Factors,
) -> Result<()> {
    let count = parameter.elem_count();
    let numbers: Vec<Number> =
        std::iter::once(Number::Size(count as u64)).chain(factors.map(Number::from)).collect();
    let call = Call {
        kernel: "adamw",
        inputs: &[parameter, m, v, &gradient.contiguous()?],
        outputs: &[(); 3].map(|()| Output::Unwritten(parameter.shape().clone())),
        numbers: &numbers,
        grid: Grid::Values(count),
    };
    match call.tensors()?.as_slice() {
        [new, new_m, new_v] => {
            parameter.set(new)?;
            m.set(new_m)?;
            v.set(new_v)
        }
        _ => bail!("adamw: the kernel has three outputs"),
    }
}
