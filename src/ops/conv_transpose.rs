//! Transposed convolution with kernel 2 and stride 2: every pixel becomes a block of 2×2 pixels.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::conv2d::{Conv2d, Geometry, channel_sums};
use super::host::{slice, values};
use super::{count, fusible};

/// Transposed convolution of `x` `[B, C, H, W]` with `weight` `[C, O, 2, 2]` and `bias` `[O]` → `[B, O, 2H, 2W]`.
///
/// The blocks do not overlap, so it is one product and a pixel shuffle.
///
/// # Errors
/// If the shapes do not fit together.
pub fn conv_transpose2x2(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (inputs, outputs, kh, kw) = weight.dims4()?;
    if inputs != channels || (kh, kw) != (2, 2) {
        bail!("conv_transpose2x2: weight {:?} does not fit a map {:?}", weight.dims(), x.dims());
    }
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    if fusible(&inputs) {
        let map = Shape::from((batch, outputs, 2 * height, 2 * width));
        let op =
            Fused(Geometry::new(&map, weight.shape(), Conv2d { stride: 2, ..Conv2d::default() })?);
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
            None => x.apply_op2(&weight, op),
        };
    }
    let out = composed(x, weight)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

fn composed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let outputs = weight.dim(1)?;
    let rows = x.reshape((batch, channels, height * width))?;
    let weight = weight.reshape((channels, outputs * 4))?.t()?.contiguous()?;
    let out = weight.unsqueeze(0)?.broadcast_matmul(&rows)?;
    let out = out.reshape(vec![batch, outputs, 2, 2, height, width])?;
    out.permute(vec![0, 1, 4, 2, 5, 3])?.reshape((batch, outputs, 2 * height, 2 * width))
}

/// The adjoint of a convolution with kernel 2 and stride 2: that convolution's input gradient is the forward pass here, and
/// its forward pass is the input gradient.
struct Fused(Geometry);

impl Fused {
    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> (CpuStorage, Shape) {
        count("conv_transpose2x2");
        (CpuStorage::F32(self.0.input_gradient(weight, x, bias)), self.0.input_shape())
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        count("conv_transpose2x2.backward");
        let grad = values(grad)?;
        let mut gradients = (None, None);
        if x.track_op() {
            let dx = self.0.forward(&grad, &values(weight)?, None);
            gradients.0 = Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?);
        }
        if weight.track_op() {
            let dw = self.0.weight_gradient(&grad, &values(x)?);
            gradients.1 = Some(Tensor::from_vec(dw, weight.shape(), &Device::Cpu)?);
        }
        Ok(gradients)
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "conv_transpose2x2"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.forward(slice(x, lx)?, slice(w, lw)?, None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "conv_transpose2x2"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(bias, lb)?)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = self.backward(x, w, &grad)?;
        let db = if bias.track_op() { Some(channel_sums(&grad)?) } else { None };
        Ok((dx, dw, db))
    }
}
