//! Matrix products of the composed definitions, which run on a GPU.

use std::cell::Cell;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::with;
use crate::config::Precision;

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Runs `f` with the products of f32 tensors on a GPU in `precision` on this thread; everything else stays in f32, and so do the
/// parameters. The backward pass of an operation follows its forward pass.
pub fn in_precision<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    with(&PRECISION, precision, f)
}

/// Whether products are in f32 on this thread.
pub(super) fn is_exact() -> bool {
    PRECISION.get() == Precision::F32
}

/// What `f` makes of its operands in the precision of this thread, in their own type again.
pub(super) fn rounded<const N: usize>(
    operands: [&Tensor; N],
    f: impl FnOnce([Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut operands = operands.map(Clone::clone);
    let narrow = match PRECISION.get() {
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
        Precision::F32 => return f(operands),
    };
    if operands.iter().any(|t| t.dtype() != DType::F32) {
        return f(operands);
    }
    for operand in &mut operands {
        *operand = operand.to_dtype(narrow)?;
    }
    f(operands)?.to_dtype(DType::F32)
}

/// `a · b` with the same leading axes; `a` `[…, M, K]`, `b` `[…, K, N]`.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    rounded([a, b], |[a, b]| a.matmul(&b))
}

/// `x · weightᵀ`, `x` `[rows, in]`, `weight` `[out, in]`. A weight that wants no gradient costs none: candle's own product
/// computes the gradients of both factors.
pub(super) fn linear_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    rounded([x, weight], |[x, weight]| match weight.track_op() {
        true => x.matmul(&weight.t()?),
        false => x.contiguous()?.apply_op1(ByFrozen { weight }),
    })
}

struct ByFrozen {
    weight: Tensor,
}

impl ByFrozen {
    fn forward<S: BackendStorage>(
        &self,
        (x, x_layout): (&S, &Layout),
        weight: &S,
    ) -> Result<(S, Shape)> {
        let ((rows, width), out) = (x_layout.shape().dims2()?, self.weight.dim(0)?);
        let transposed = self.weight.layout().transpose(0, 1)?;
        let y = x.matmul(weight, (1, rows, out, width), x_layout, &transposed)?;
        Ok((y, (rows, out).into()))
    }
}

impl CustomOp1 for ByFrozen {
    fn name(&self) -> &'static str {
        "linear_product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cpu(weight) => self.forward((x, layout), weight),
            _ => bail!("linear: the weight is not where the input is"),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cuda(weight) => self.forward((x, layout), weight),
            _ => bail!("linear: the weight is not where the input is"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.matmul(&self.weight).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::random;

    #[test]
    fn the_gradients_are_right_with_a_frozen_weight_and_a_trained_one() -> Result<()> {
        let (x, weight) = (normal(&[3, 4], 1)?, normal(&[5, 4], 2)?);
        check(|t| linear_product(&t[0], &weight), std::slice::from_ref(&x))?;
        check(|t| linear_product(&t[0], &t[1]), &[x, weight])
    }

    #[test]
    fn narrow_types_round_the_factors_alone() -> Result<()> {
        let (x, weight) = (random(&[3, 64], 1)?, random(&[5, 64], 2)?);
        let plain = linear_product(&x, &weight)?;
        let difference = |y: Tensor| (y - &plain)?.abs()?.max_all()?.to_scalar::<f32>();
        // Products of 64 factors of about 1 with eight bits each, or eleven.
        for (precision, most) in [(Precision::Bf16, 0.25), (Precision::F16, 0.03)] {
            let y = in_precision(precision, || linear_product(&x, &weight))?;
            assert_eq!(y.dtype(), DType::F32);
            let difference = difference(y)?;
            assert!(difference > 0.0 && difference < most, "{precision:?}: {difference}");
        }
        // Behind the scope everything is as before it.
        assert_eq!(difference(linear_product(&x, &weight)?)?, 0.0);
        Ok(())
    }
}
