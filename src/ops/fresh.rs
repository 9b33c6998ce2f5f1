//! Values that are there already, and their gradients.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage,
    Tensor, bail,
};

/// Values that no tensor holds yet.
pub(super) struct Fresh {
    pub(super) storage: Storage,
    pub(super) shape: Shape,
}

/// From the inputs, the output and its gradient (contiguous) to the gradients of the inputs; those of inputs that want none
/// may be left out.
type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

impl Fresh {
    /// Values on the CPU.
    pub(super) fn on_cpu(values: Vec<f32>, shape: impl Into<Shape>) -> Self {
        Self { storage: Storage::Cpu(CpuStorage::F32(values)), shape: shape.into() }
    }

    /// The values of a tensor once more.
    pub(super) fn copy_of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let storage = match &*storage {
            Storage::Cpu(values) => Storage::Cpu(values.try_clone(layout)?),
            Storage::Cuda(values) => Storage::Cuda(values.try_clone(layout)?),
            Storage::Metal(_) => bail!("there is nothing here for Metal"),
        };
        Ok(Self { storage, shape: tensor.shape().clone() })
    }

    /// A tensor without a gradient.
    pub(super) fn tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }

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
            _ => bail!("one to three inputs have gradients, not {}", inputs.len()),
        }
    }
}

/// What stands for the values of `tensors` one after the other and holds none of them: one input of an operation that has more
/// of them than candle knows operations for. The gradient that it is given goes on to them.
pub(super) fn bundle(tensors: &[Tensor]) -> Result<Tensor> {
    let (own, rest) = tensors.split_at(tensors.len().min(2));
    let mut inputs: Vec<&Tensor> = own.iter().collect();
    let rest = match rest {
        [] | [_] => rest.first().cloned(),
        _ => Some(bundle(rest)?),
    };
    inputs.extend(&rest);
    let count: usize = inputs.iter().map(|t| t.elem_count()).sum();
    Fresh::on_cpu(Vec::new(), count).with_gradient(&inputs, |inputs, _, grad| {
        let mut first = 0;
        let part = |input: &&Tensor| {
            let place = (first, input.elem_count());
            first += place.1;
            let part = || grad.narrow(0, place.0, place.1)?.reshape(input.shape());
            input.track_op().then(part).transpose()
        };
        inputs.iter().map(part).collect()
    })
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
            None => bail!("what was computed is taken once"),
        }
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(values), shape) => Ok((values, shape)),
            _ => bail!("what was computed is not where its input is"),
        }
    }

    fn on_gpu(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(values), shape) => Ok((values, shape)),
            _ => bail!("what was computed is not where its input is"),
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
            Err(_) => bail!("there must be a gradient, or none, for each of {N} inputs"),
        }
    }
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        "fresh"
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
        "fresh"
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
        "fresh"
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
