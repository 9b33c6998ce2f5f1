//! Values that no later step of a backward pass reads, given back before the graph is.
//!
//! Candle keeps what every operation gave until the whole graph goes. Its backward pass comes to an operation after all that read its
//! output, so from then on only the operations before it count: half of the activations are gone when the other half's
//! gradients are computed.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

thread_local! {
    static SPENDING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `backward`, the last use of a graph: outputs of large operations are empty after it, and so is what shares their
/// values.
pub(crate) fn spending<T>(backward: impl FnOnce() -> T) -> T {
    super::with(&SPENDING, true, backward)
}

/// Inside [`spending`] empties `t`, f32 on the CPU: the output of an operation or its gradient, when the backward pass of that operation
/// has no more use for it. A gradient must not be given on.
pub(super) fn spend(t: &Tensor) -> Result<()> {
    if SPENDING.get() { t.inplace_op1(&Emptied) } else { Ok(()) }
}

struct Emptied;

impl InplaceOp1 for Emptied {
    fn name(&self) -> &'static str {
        "emptied"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        *storage = CpuStorage::F32(Vec::new());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::twin::random;
    use crate::ops::{Conv2d, conv2d, conv3x3_joined, gelu};

    /// Values that are there.
    fn held(t: &Tensor) -> usize {
        match &*t.storage_and_layout().0 {
            candle_core::Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            _ => 0,
        }
    }

    #[test]
    fn what_was_read_for_the_last_time_is_gone_and_the_gradients_are_the_same() -> Result<()> {
        let x = Var::from_tensor(&random(&[1, 4, 6, 6], 1)?)?;
        let weights = [(8, 4), (4, 8), (3, 12)];
        let weights: Vec<Var> = weights
            .iter()
            .map(|&(o, i)| Var::from_tensor(&random(&[o, i, 3, 3], 2)?))
            .collect::<Result<_>>()?;
        let forward = || -> Result<[Tensor; 3]> {
            let first = gelu(&conv2d(&x, &weights[0], None, Conv2d::same(3))?)?;
            let second = conv2d(&first, &weights[1], None, Conv2d::same(3))?;
            let last = conv3x3_joined(&[first.clone(), second], &weights[2], (6, 6))?;
            Ok([first, last.clone(), last.sqr()?.sum_all()?])
        };
        let [first, last, loss] = forward()?;
        let want = loss.backward()?;
        assert_eq!((held(&first), held(&last)), (288, 108));
        let [first, last, loss] = forward()?;
        let found = spending(|| loss.backward())?;
        assert_eq!((held(&first), held(&last)), (0, 0));
        for var in weights.iter().chain([&x]) {
            let (want, found) = (want.get(var).unwrap(), found.get(var).unwrap());
            assert_eq!(
                want.flatten_all()?.to_vec1::<f32>()?,
                found.flatten_all()?.to_vec1::<f32>()?
            );
        }
        Ok(())
    }
}
