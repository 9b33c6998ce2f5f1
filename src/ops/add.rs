//! Sums of two tensors on all threads; candle's own runs on one.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::host::slice;
use super::{count, fusible};

/// Values that one task adds.
const PART: usize = 1 << 15;

/// `a + b` of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        bail!("add: {:?} and {:?}", a.dims(), b.dims());
    }
    if fusible(&[a, b]) && a.is_contiguous() && b.is_contiguous() && a.elem_count() > PART {
        return a.apply_op2(b, Fused);
    }
    a + b
}

struct Fused;

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("add");
        let (a, b) = (slice(a, la)?, slice(b, lb)?);
        let sums = a.par_iter().zip(b).with_min_len(PART).map(|(a, b)| a + b);
        Ok((CpuStorage::F32(sums.collect()), la.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn fused_and_composed_are_the_same() -> Result<()> {
        let inputs = [random(&[3, 257, 67], 1)?, random(&[3, 257, 67], 2)?];
        assert_twins("add", 0.0, &inputs, |t| add(&t[0], &t[1]))?;
        // The same tensor twice, and one that is small or not contiguous.
        let x = random(&[300, 400], 3)?;
        assert_eq!(add(&x, &x)?.to_vec2::<f32>()?, (&x * 2.0)?.to_vec2::<f32>()?);
        assert_eq!(add(&x.t()?, &x.t()?)?.to_vec2::<f32>()?, (x.t()? * 2.0)?.to_vec2::<f32>()?);
        assert!(add(&x, &x.t()?).is_err());
        Ok(())
    }
}
