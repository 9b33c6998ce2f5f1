//! Transposed convolution with kernel 2 and stride 2: every pixel becomes a block of 2×2 pixels. With a 1×1 convolution after
//! it, it is one transposed convolution.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::conv2d::{Conv2d, Geometry, channel_sums};
use super::gemm::{Mat, MatMut, Threads, gemm};
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

/// The transposed convolution that `weight` `[C, D, 2, 2]` and `bias` `[D]` followed by the 1×1 convolution `mix`
/// `[O, D, 1, 1]` make: `[C, O, 2, 2]` and `[O]`. Without gradient.
///
/// # Errors
/// If the shapes do not fit together.
pub fn mix_deconvolution(weight: &Tensor, bias: &Tensor, mix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (inputs, between, kh, kw) = weight.dims4()?;
    if mix.dims4()? != (mix.dim(0)?, between, 1, 1) || (kh, kw) != (2, 2) {
        bail!("mix_deconvolution: {:?} cannot mix the outputs of {:?}", mix.dims(), weight.dims());
    }
    let (weight, mix) =
        (weight.detach().contiguous()?, mix.detach().flatten_from(1)?.contiguous()?);
    let bias = mix.matmul(&bias.detach().unsqueeze(1)?)?.squeeze(1)?;
    if !fusible(&[&weight, &mix]) {
        let mixed = mix.unsqueeze(0)?.broadcast_matmul(&weight.reshape((inputs, between, 4))?)?;
        return Ok((mixed.reshape((inputs, (), 2, 2))?, bias));
    }
    count("mix_deconvolution");
    let outputs = mix.dim(0)?;
    let (weight, mix) = (values(&weight)?, values(&mix)?);
    let mut mixed = vec![0f32; inputs * outputs * 4];
    for tap in 0..4 {
        // Channels by inputs, at one of the four pixels.
        let old = Mat::strided(&weight[tap..], (between, inputs), (4, 4 * between));
        let new = MatMut::strided(&mut mixed[tap..], (outputs, inputs), (4, 4 * outputs));
        gemm(1.0, Mat::new(&mix, outputs, between), old, 0.0, new, Threads::Pool);
    }
    Ok((Tensor::from_vec(mixed, (inputs, outputs, 2, 2), &Device::Cpu)?, bias))
}

/// Whether [`mix_deconvolution`] saves multiply-adds on a map of `pixels` from `inputs` over `between` to `outputs`
/// channels.
pub fn mixing_first_pays(pixels: usize, [inputs, between, outputs]: [usize; 3]) -> bool {
    let apart = pixels * between * (inputs + outputs);
    let at_once = pixels * inputs * outputs + inputs * between * outputs;
    at_once < apart
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::relative_difference;
    use crate::ops::twin::random;
    use crate::ops::{composed, conv2d, kernel_calls};

    #[test]
    fn one_deconvolution_stands_for_itself_and_the_convolution_after_it() -> Result<()> {
        for (inputs, between, outputs) in [(3, 5, 2), (96, 96, 40)] {
            let x = random(&[2, inputs, 5, 7], 1)?;
            let (weight, bias) = (random(&[inputs, between, 2, 2], 2)?, random(&[between], 3)?);
            let mix = random(&[outputs, between, 1, 1], 4)?;
            let apart = conv_transpose2x2(&x, &weight, Some(&bias))?;
            let apart = conv2d(&apart, &mix, None, Conv2d::default())?;
            let before = kernel_calls("mix_deconvolution");
            let mixed = mix_deconvolution(&weight, &bias, &mix)?;
            assert!(kernel_calls("mix_deconvolution") > before);
            for (weight, bias) in [mixed, composed(|| mix_deconvolution(&weight, &bias, &mix))?] {
                let at_once = conv_transpose2x2(&x, &weight, Some(&bias))?;
                assert!(relative_difference(&at_once, &apart)? < 1e-6);
            }
            assert!(
                mix_deconvolution(&weight, &bias, &random(&[2, between + 1, 1, 1], 5)?).is_err()
            );
        }
        Ok(())
    }

    #[test]
    fn it_pays_on_maps_with_more_pixels_than_channels() {
        assert!(mixing_first_pays(64 * 64, [768, 768, 768]));
        assert!(mixing_first_pays(32 * 32, [768, 768, 256]));
        assert!(!mixing_first_pays(16 * 16, [768, 768, 768]));
    }
}
