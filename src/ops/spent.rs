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
    use crate::ops::map_tests::trained_norm;
    use crate::ops::twin::random;
    use crate::ops::{
        BatchNorm, Conv2d, NormMode, conv_transpose2x2, conv2d, conv3x3_joined, gelu,
        resize_bilinear,
    };
    use crate::world::World;

    /// Values that are there.
    fn held(t: &Tensor) -> usize {
        match &*t.storage_and_layout().0 {
            candle_core::Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            _ => 0,
        }
    }

    #[test]
    fn what_was_read_for_the_last_time_is_gone_and_the_gradients_are_the_same() -> Result<()> {
        let shapes: [&[usize]; 7] = [
            &[1, 4, 6, 6],
            &[8, 4, 3, 3],
            &[4, 8, 3, 3],
            &[3, 12, 3, 3],
            &[3, 3, 2, 2],
            &[3],
            &[3],
        ];
        let vars = shapes.iter().map(|shape| Var::from_tensor(&random(shape, 1)?));
        let vars: Vec<Var> = vars.collect::<Result<_>>()?;
        let [x, first, second, join, up, weight, bias] = &vars[..] else { unreachable!() };
        let (weight, bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
        let norm = BatchNorm { weight, bias, ..trained_norm(3)? };
        let mode = NormMode::Batch { update: false, world: World::SINGLE };
        let forward = || -> Result<[Tensor; 4]> {
            let fine = gelu(&conv2d(x, first, None, Conv2d::same(3))?)?;
            let parts = [fine.clone(), conv2d(&fine, second, None, Conv2d::same(3))?];
            let joined = conv3x3_joined(&parts, join, (6, 6))?;
            let large = conv_transpose2x2(&joined, up, None)?;
            let last = norm.relu(mode).plus(&joined).forward(&large)?;
            let loss = resize_bilinear(&last, (5, 5))?.sqr()?.sum_all()?;
            Ok([fine, joined, last, loss])
        };
        let [fine, joined, last, loss] = forward()?;
        let want = loss.backward()?;
        assert_eq!([&fine, &joined, &last].map(held), [288, 108, 432]);
        let [fine, joined, last, loss] = forward()?;
        let found = spending(|| loss.backward())?;
        assert_eq!([&fine, &joined, &last].map(held), [0, 0, 0]);
        for var in &vars {
            let (want, found) = (want.get(var).unwrap(), found.get(var).unwrap());
            assert_eq!(
                want.flatten_all()?.to_vec1::<f32>()?,
                found.flatten_all()?.to_vec1::<f32>()?
            );
        }
        Ok(())
    }
}
