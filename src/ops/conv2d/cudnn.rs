//! The convolution by cuDNN, on an NVIDIA GPU.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType,
    CudnnError, FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{
    CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use half::{bf16, f16};

use super::Geometry;
use crate::ops::fresh::Fresh;
use crate::ops::product::rounded;
use crate::ops::{are_composed, count};

/// Whether cuDNN may convolve these tensors: both f32 on a GPU, neither of them empty, not inside
/// [`composed`](crate::ops::composed).
pub(super) fn runs(x: &Tensor, weight: &Tensor) -> bool {
    let at_home =
        |t: &Tensor| t.device().is_cuda() && t.dtype() == DType::F32 && t.elem_count() > 0;
    !are_composed() && at_home(x) && at_home(weight)
}

/// `x` convolved with `weight`, without a bias. What is frozen gets no gradient.
pub(super) fn convolve(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    rounded([x, weight], |[x, weight]| {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        let y = Pass::Output.run(&geometry, &x, &weight)?;
        y.with_gradient(&[&x, &weight], move |inputs, _, grad| {
            let (x, weight) = (inputs[0], inputs[1]);
            let mut gradients = vec![None, None];
            if x.track_op() {
                let dx = Pass::InputGradient.run(&geometry, weight, grad)?;
                gradients[0] = Some(dx.tensor());
            }
            if weight.track_op() {
                let dw = Pass::WeightGradient.run(&geometry, x, grad)?;
                gradients[1] = Some(dw.tensor());
            }
            Ok(gradients)
        })
    })
}

/// What is computed of input, weight and output, from the other two in this order.
#[derive(Clone, Copy)]
enum Pass {
    Output,
    InputGradient,
    WeightGradient,
}

/// Runs an operation of cuDNN on its operands, with the algorithm that the heuristic puts first and the memory that it asks for.
macro_rules! launch {
    ($device:expr, $operation:expr, $($operand:expr),+) => {{
        let operation = $operation;
        let algorithm = operation.pick_algorithm().map_err(failed)?;
        let bytes = operation.get_workspace_size(algorithm).map_err(failed)?;
        // SAFETY: nothing reads the memory before cuDNN wrote it; there is at least one byte, because none cannot be had.
        let mut workspace = unsafe { $device.alloc::<u8>(bytes.max(1)) }?;
        let scales = (T::from_f64(1.0), T::from_f64(0.0));
        // SAFETY: the operands have the types and shapes that the operation's descriptors say, and are contiguous.
        unsafe { operation.launch(algorithm, Some(&mut workspace), scales, $($operand),+) }
            .map_err(failed)?;
    }};
}

impl Pass {
    fn run(self, geometry: &Geometry, a: &Tensor, b: &Tensor) -> Result<Fresh> {
        match a.dtype() {
            DType::F32 => self.run_as::<f32>(geometry, a, b),
            DType::BF16 => self.run_as::<bf16>(geometry, a, b),
            DType::F16 => self.run_as::<f16>(geometry, a, b),
            other => bail!("conv2d: cuDNN is not called for {other:?}"),
        }
    }

    fn run_as<T>(self, geometry: &Geometry, a: &Tensor, b: &Tensor) -> Result<Fresh>
    where
        T: CudaDType + CudnnDataType + DeviceRepr + WithDType,
    {
        count(self.name());
        let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
        let (Storage::Cuda(a), Storage::Cuda(b)) = (&*a, &*b) else {
            bail!("conv2d: cuDNN is called for what is on a GPU")
        };
        let device = a.device().clone();
        let (a, b) = (view::<T>(a, a_layout)?, view::<T>(b, b_layout)?);
        let shape = self.shape(geometry);
        let Plan { conv, x, w, y } = &Plan::<T>::new(handle(&device)?, geometry)?;
        // SAFETY: cuDNN writes every element.
        let mut out = unsafe { device.alloc::<T>(shape.elem_count()) }?;
        match self {
            Self::Output => launch!(device, ConvForward { conv, x, w, y }, &a, &b, &mut out),
            Self::InputGradient => {
                launch!(device, ConvBackwardData { conv, dx: x, w, dy: y }, &mut out, &a, &b);
            }
            Self::WeightGradient => {
                launch!(device, ConvBackwardFilter { conv, x, dw: w, dy: y }, &a, &mut out, &b);
            }
        }
        Ok(Fresh { storage: Storage::Cuda(CudaStorage::wrap_cuda_slice(out, device)), shape })
    }

    /// As [`kernel_calls`](crate::ops::kernel_calls) counts it.
    fn name(self) -> &'static str {
        match self {
            Self::Output => "conv2d.cudnn",
            Self::InputGradient => "conv2d.cudnn.input_gradient",
            Self::WeightGradient => "conv2d.cudnn.weight_gradient",
        }
    }

    fn shape(self, geometry: &Geometry) -> Shape {
        match self {
            Self::Output => geometry.output_shape(),
            Self::InputGradient => geometry.input_shape(),
            Self::WeightGradient => geometry.weight_shape(),
        }
    }
}

/// A convolution as cuDNN describes it, which sums in f32.
struct Plan<T> {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

impl<T: CudnnDataType> Plan<T> {
    fn new(cudnn: &Arc<Cudnn>, geometry: &Geometry) -> Result<Self> {
        let format = cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let [stride, padding, dilation, groups] = {
            let conv = geometry.conv;
            sizes([conv.stride, conv.padding, conv.dilation, conv.groups])?
        };
        let mut conv = cudnn
            .create_conv2d(
                [padding; 2],
                [stride; 2],
                [dilation; 2],
                cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            )
            .map_err(failed)?;
        conv.set_group_count(groups).map_err(failed)?;
        // What is f32 is not rounded to TF32.
        let math = match T::DATA_TYPE == f32::DATA_TYPE {
            true => cudnnMathType_t::CUDNN_FMA_MATH,
            false => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        conv.set_math_type(math).map_err(failed)?;
        let tensor = |shape: Shape| {
            let (n, c, h, w) = shape.dims4()?;
            cudnn.create_4d_tensor(format, sizes([n, c, h, w])?).map_err(failed)
        };
        let (o, c, kh, kw) = geometry.weight_shape().dims4()?;
        Ok(Self {
            conv,
            x: tensor(geometry.input_shape())?,
            w: cudnn.create_4d_filter(format, sizes([o, c, kh, kw])?).map_err(failed)?,
            y: tensor(geometry.output_shape())?,
        })
    }
}

fn sizes<const N: usize>(sizes: [usize; N]) -> Result<[i32; N]> {
    match sizes.iter().all(|&size| i32::try_from(size).is_ok()) {
        true => Ok(sizes.map(|size| size as i32)),
        false => bail!("conv2d: a size of {sizes:?} is too large for cuDNN"),
    }
}

fn view<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        None => bail!("conv2d: cuDNN is called for what is contiguous"),
    }
}

thread_local! {
    // A handle belongs to its thread. Never closed: the driver may be gone by the end of it.
    static HANDLES: RefCell<HashMap<DeviceId, &'static Arc<Cudnn>>> = RefCell::default();
}

/// This thread's handle for `device`.
fn handle(device: &CudaDevice) -> Result<&'static Arc<Cudnn>> {
    if let Some(handle) = HANDLES.with_borrow(|handles| handles.get(&device.id()).copied()) {
        return Ok(handle);
    }
    match Cudnn::new(device.cuda_stream()) {
        Ok(handle) => {
            let handle = &*Box::leak(Box::new(handle));
            HANDLES.with_borrow_mut(|handles| handles.insert(device.id(), handle));
            Ok(handle)
        }
        Err(error) => bail!(
            "cuDNN does not start ({error:?}): this binary was built with the feature `cudnn` and needs libcudnn.so.9, whose \
             folder LD_LIBRARY_PATH may name (README, \"On NVIDIA GPUs\")"
        ),
    }
}

fn failed(error: CudnnError) -> Error {
    Error::Msg(format!("conv2d: cuDNN says {error:?}"))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use crate::config::Precision;
    use crate::ops::gpu::emulator::test_gpu;
    use crate::ops::twin::{assert_twins, random};
    use crate::ops::{Conv2d, conv2d, in_precision, kernel_calls};

    use super::*;

    /// On the GPU that `RESCATTER_TEST_DEVICE` names.
    #[test]
    fn the_convolution_on_a_gpu_equals_the_composed_one() -> Result<()> {
        let Some(device) = test_gpu()? else {
            println!("skipped: convolution by cuDNN because RESCATTER_TEST_DEVICE names no GPU");
            return Ok(());
        };
        let normal = |shape: &[usize], seed| random(shape, seed)?.to_device(&device);
        let cases = [
            // (map, kernel, convolution)
            ((24, 31), (3, 3), Conv2d::same(3)),
            ((15, 16), (3, 3), Conv2d { stride: 2, padding: 1, ..Conv2d::default() }),
            ((16, 15), (3, 2), Conv2d { dilation: 2, padding: 2, ..Conv2d::default() }),
            ((15, 14), (1, 1), Conv2d::default()),
            ((15, 14), (1, 1), Conv2d { stride: 2, ..Conv2d::default() }),
            ((14, 21), (7, 7), Conv2d { stride: 7, ..Conv2d::default() }),
            ((14, 15), (3, 3), Conv2d { groups: 2, ..Conv2d::same(3) }),
            ((14, 15), (3, 3), Conv2d { groups: 8, stride: 2, ..Conv2d::same(3) }),
        ];
        for ((height, width), (kh, kw), conv) in cases {
            let x = normal(&[2, 8, height, width], 1)?;
            let inputs = [x, normal(&[16, 8 / conv.groups, kh, kw], 2)?, normal(&[16], 3)?];
            let f = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), conv);
            assert_twins("conv2d.cudnn", 1e-4, &inputs, f)?;
            for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F16, 4e-3)] {
                let twins = || assert_twins("conv2d.cudnn", tolerance, &inputs, f);
                in_precision(precision, twins)?;
            }
        }
        // A frozen weight, and a frozen input, cost no gradient.
        let (x, weight) = (normal(&[2, 8, 9, 9], 1)?, normal(&[4, 8, 3, 3], 2)?);
        let gradients = [Pass::InputGradient, Pass::WeightGradient].map(Pass::name);
        for (x_moves, moved) in [(true, [1, 0]), (false, [0, 1])] {
            let before = gradients.map(kernel_calls);
            let (tracked, frozen) = if x_moves { (&x, &weight) } else { (&weight, &x) };
            let tracked = Var::from_tensor(tracked)?;
            let (x, weight) =
                if x_moves { (tracked.as_tensor(), frozen) } else { (frozen, tracked.as_tensor()) };
            conv2d(x, weight, None, Conv2d::same(3))?.sum_all()?.backward()?;
            let calls = [0, 1].map(|i| kernel_calls(gradients[i]) - before[i]);
            assert_eq!(calls, moved);
        }
        Ok(())
    }
}
