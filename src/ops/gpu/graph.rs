//! Gradients for what kernels computed.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage,
    Tensor, bail,
};

use super::call::Fresh;

/// From the inputs, the output and its gradient (contiguous) to the gradients of the inputs; those of inputs that want none
/// may be left out.
type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

impl Fresh {
    /// A tensor whose gradient `backward` carries to the inputs, one to three of them.
    pub(super) fn with_gradient(
        self,
        inputs: &[&Tensor],
        backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>
        + Send
        + Sync
        + 'static,
    ) -> Result<Tensor> {
        if !inputs.iter().any(|t| t.track_op()) {
            return Ok(self.tensor());
        }
        let node = Node { fresh: Mutex::new(Some(self)), backward: Box::new(backward) };
        match inputs {
            [a] => a.apply_op1(node),
            [a, b] => a.apply_op2(b, node),
            [a, b, c] => a.apply_op3(b, c, node),
            _ => bail!("a kernel has one to three inputs with gradients, not {}", inputs.len()),
        }
    }
}

/// An operation of candle's graph whose output is there already.
struct Node {
    fresh: Mutex<Option<Fresh>>,
    backward: Box<Backward>,
}

impl Node {
    fn take(&self) -> Result<(Storage, Shape)> {
        match self.fresh.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Fresh { storage, shape }) => Ok((storage, shape)),
            None => bail!("the output of a kernel is taken once"),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(values), shape) => Ok((values, shape)),
            _ => bail!("the output of a kernel is not where its input is"),
        }
    }

    fn on_gpu(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(values), shape) => Ok((values, shape)),
            _ => bail!("the output of a kernel is not where its input is"),
        }
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let found = (self.backward)(&inputs, y, &grad.contiguous()?)?;
        match found.try_into() {
            Ok(gradients) => Ok(gradients),
            Err(_) => bail!("a kernel has a gradient, or none, for each of {N} inputs"),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(&self, a: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [da] = self.gradients([a], y, grad)?;
        Ok(da)
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.gradients([a, b], y, grad)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_gpu()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.gradients([a, b, c], y, grad)?;
        Ok((da, db, dc))
    }
}
