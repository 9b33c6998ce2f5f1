//! One step of AdamW for many parameters.

use candle_core::{Result, Tensor, Var, bail};

use super::address::address;
use super::call::{Call, Grid, Number};

/// Values of a block, as in `adamw.cu`.
const CHUNK: usize = 2048;

/// A parameter that moves.
pub(in crate::ops) struct Update<'a> {
    pub(in crate::ops) parameter: &'a Var,
    pub(in crate::ops) moments: [&'a Var; 2],
    pub(in crate::ops) gradient: &'a Tensor,
    /// 1 − ηλ and η / (1 − β₁ᵗ).
    pub(in crate::ops) rates: [f64; 2],
}

/// As [`adamw`](crate::ops::optimizer::adamw), in place and in one launch for all; the factors are β₁, β₂, 1 / √(1 − β₂ᵗ), ε and
/// the one on the gradient.
pub(in crate::ops) fn adamw(updates: &[Update], factors: [f64; 5]) -> Result<()> {
    let Some(device) = updates.first().map(|first| first.parameter.device()) else { return Ok(()) };
    let gradients = updates.iter().map(|update| update.gradient.contiguous());
    let gradients = gradients.collect::<Result<Vec<_>>>()?;
    let (mut places, mut starts, mut rates, mut chunks) = (vec![], vec![], vec![], 0);
    for (update, gradient) in updates.iter().zip(&gradients) {
        let Update { parameter, moments: [m, v], .. } = update;
        for tensor in [parameter.as_tensor(), m.as_tensor(), v.as_tensor(), gradient] {
            if !tensor.device().same_device(device) {
                bail!("adamw: a parameter, its moments or its gradient is on another GPU");
            }
            places.push(address(tensor)?);
        }
        let count = parameter.elem_count();
        places.push(count as i64);
        starts.push(chunks as u32);
        rates.extend(update.rates.map(|rate| rate as f32));
        chunks += count.div_ceil(CHUNK);
    }
    let count = updates.len();
    let places = Tensor::from_vec(places, (count, 5), device)?;
    let starts = Tensor::from_vec(starts, count, device)?;
    let rates = Tensor::from_vec(rates, (count, 2), device)?;
    let numbers: Vec<Number> =
        std::iter::once(count.into()).chain(factors.map(Number::from)).collect();
    let call = Call {
        kernel: "adamw",
        inputs: &[&places, &starts, &rates],
        outputs: &[],
        numbers: &numbers,
        grid: Grid::Rows(chunks),
    };
    call.run().map(drop)
}
