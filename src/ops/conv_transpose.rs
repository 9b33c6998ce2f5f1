//! Transposed convolution with kernel 2 and stride 2: every pixel becomes a block of 2×2 pixels. With a 1×1 convolution after
//! it, it is one transposed convolution.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::conv2d::{Bilinear, Conv2d, Geometry, apply};
use super::epilogue::Epilogue;
use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::{slice, values};
use super::product::rounded;
use super::{NormRelu, count, fusible};

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
        return apply(Adjoint(adjoint(&map, weight)?), x, weight, bias);
    }
    let out = composed(x, weight)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

/// [`conv_transpose2x2`], then batch norm and ReLU, in one pass as [`conv2d_norm_relu`](super::conv2d_norm_relu).
///
/// # Errors
/// As [`conv_transpose2x2`] and [`NormRelu::forward`].
pub fn conv_transpose2x2_norm_relu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    then: NormRelu,
) -> Result<Tensor> {
    let ((batch, inputs, height, width), outputs) = (x.dims4()?, weight.dim(1)?);
    let fits = weight.dims() == [inputs, outputs, 2, 2] && bias.elem_count() == outputs;
    match then.folded(outputs, &[x, weight, bias])? {
        Some(folded) if fits => {
            count("conv_transpose2x2.norm_relu");
            let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
            let folded = folded.after_bias(&values(&bias)?);
            let map = Shape::from((batch, outputs, 2 * height, 2 * width));
            let geometry = adjoint(&map, &weight)?;
            let y = geometry.input_gradient(&values(&weight)?, &values(&x)?, folded.with_relu());
            then.folded_into(y, map)
        }
        _ => then.forward(&conv_transpose2x2(x, weight, Some(bias))?),
    }
}

/// The convolution that takes the enlarged `map` back.
fn adjoint(map: &Shape, weight: &Tensor) -> Result<Geometry> {
    Geometry::new(map, weight.shape(), Conv2d { stride: 2, ..Conv2d::default() })
}

/// The transposed convolution that `weight` `[C, D, 2, 2]` and `bias` `[D]` followed by the 1×1 convolution `mix`
/// `[O, D, 1, 1]` make: `[C, O, 2, 2]` and `[O]`.
///
/// # Errors
/// If the shapes do not fit together.
pub fn mix_deconvolution(weight: &Tensor, bias: &Tensor, mix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (inputs, between, kh, kw) = weight.dims4()?;
    let outputs = mix.dim(0)?;
    if mix.dims() != [outputs, between, 1, 1] || (kh, kw) != (2, 2) {
        bail!("mix_deconvolution: {:?} cannot mix the outputs of {:?}", mix.dims(), weight.dims());
    }
    let mix = mix.reshape((outputs, between))?;
    let bias = mix.matmul(&bias.unsqueeze(1)?)?.squeeze(1)?;
    let weight = weight.contiguous()?;
    let mixed = if fusible(&[&weight, &mix]) {
        weight.apply_op2(&mix, Mixed { inputs, between, outputs })?
    } else {
        let mixed = mix.unsqueeze(0)?.broadcast_matmul(&weight.reshape((inputs, between, 4))?)?;
        mixed.reshape((inputs, outputs, 2, 2))?
    };
    Ok((mixed, bias))
}

/// Pixel t of the block: mixed\[:, o, t\] = Σ_d mix\[o, d\] weight\[:, d, t\].
struct Mixed {
    inputs: usize,
    between: usize,
    outputs: usize,
}

impl Mixed {
    /// Channels by inputs at pixel `tap` of a weight `[C, channels, 2, 2]`.
    fn pixel<'a>(&self, weight: &'a [f32], channels: usize, tap: usize) -> Mat<'a> {
        Mat::strided(&weight[tap..], (channels, self.inputs), (4, 4 * channels))
    }
}

impl CustomOp2 for Mixed {
    fn name(&self) -> &'static str {
        "mix_deconvolution"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        lw: &Layout,
        mix: &CpuStorage,
        lm: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("mix_deconvolution");
        let Self { inputs, between, outputs } = *self;
        let (weight, mix) = (slice(weight, lw)?, Mat::new(slice(mix, lm)?, outputs, between));
        let mut mixed = vec![0f32; inputs * outputs * 4];
        for tap in 0..4 {
            let target = (outputs, inputs);
            let target = MatMut::strided(&mut mixed[tap..], target, (4, 4 * outputs));
            gemm(1.0, mix, self.pixel(weight, between, tap), 0.0, target, Threads::Pool);
        }
        Ok((CpuStorage::F32(mixed), Shape::from((inputs, outputs, 2, 2))))
    }

    fn bwd(
        &self,
        weight: &Tensor,
        mix: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        count("mix_deconvolution.backward");
        let Self { inputs, between, outputs } = *self;
        let grad = grad.contiguous()?;
        let grad = values(&grad)?;
        let mut gradients = (None, None);
        if weight.track_op() {
            let (mix, mut dw) = (values(mix)?, vec![0f32; inputs * between * 4]);
            let mix = Mat::new(&mix, outputs, between).t();
            for tap in 0..4 {
                let target = (between, inputs);
                let target = MatMut::strided(&mut dw[tap..], target, (4, 4 * between));
                gemm(1.0, mix, self.pixel(&grad, outputs, tap), 0.0, target, Threads::Pool);
            }
            gradients.0 = Some(Tensor::from_vec(dw, weight.shape(), &Device::Cpu)?);
        }
        if mix.track_op() {
            let (weight, mut dmix) = (values(weight)?, vec![0f32; outputs * between]);
            for tap in 0..4 {
                let (grad, weight) =
                    (self.pixel(&grad, outputs, tap), self.pixel(&weight, between, tap).t());
                let target = MatMut::new(&mut dmix, outputs, between);
                gemm(1.0, grad, weight, if tap == 0 { 0.0 } else { 1.0 }, target, Threads::Pool);
            }
            gradients.1 = Some(Tensor::from_vec(dmix, mix.shape(), &Device::Cpu)?);
        }
        Ok(gradients)
    }
}

/// Whether [`mix_deconvolution`] saves multiply-adds on maps of `pixels` from `inputs` over `between` to `outputs`
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
    let out =
        rounded([&weight.unsqueeze(0)?, &rows], |[weight, rows]| weight.broadcast_matmul(&rows))?;
    let out = out.reshape(vec![batch, outputs, 2, 2, height, width])?;
    out.permute(vec![0, 1, 4, 2, 5, 3])?.reshape((batch, outputs, 2 * height, 2 * width))
}

/// The adjoint of a convolution with kernel 2 and stride 2: that convolution's input gradient is the forward pass here, and
/// its forward pass is the input gradient.
struct Adjoint(Geometry);

impl Bilinear for Adjoint {
    const FORWARD: &str = "conv_transpose2x2";
    const BACKWARD: &str = "conv_transpose2x2.backward";

    fn shape(&self) -> Shape {
        self.0.input_shape()
    }

    fn forward(&self, x: &[f32], weight: &[f32], epilogue: Epilogue) -> Vec<f32> {
        self.0.input_gradient(weight, x, epilogue)
    }

    fn input_gradient(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        self.0.forward(grad, weight, Epilogue::bias(None))
    }

    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        self.0.weight_gradient(grad, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv2d;
    use crate::ops::gradcheck::{check, normal, relative_difference};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn one_deconvolution_stands_for_itself_and_the_convolution_after_it() -> Result<()> {
        for (channels, between, outputs) in [(3, 5, 2), (96, 96, 40)] {
            let inputs = [
                random(&[2, channels, 5, 7], 1)?,
                random(&[channels, between, 2, 2], 2)?,
                random(&[between], 3)?,
                random(&[outputs, between, 1, 1], 4)?,
            ];
            let at_once = |t: &[Tensor]| {
                let (weight, bias) = mix_deconvolution(&t[1], &t[2], &t[3])?;
                conv_transpose2x2(&t[0], &weight, Some(&bias))
            };
            assert_twins("mix_deconvolution", 1e-5, &inputs, at_once)?;
            let apart = conv_transpose2x2(&inputs[0], &inputs[1], Some(&inputs[2]))?;
            let apart = conv2d(&apart, &inputs[3], None, Conv2d::default())?;
            assert!(relative_difference(&at_once(&inputs)?, &apart)? < 1e-6);
            let wrong = random(&[2, between + 1, 1, 1], 5)?;
            assert!(mix_deconvolution(&inputs[1], &inputs[2], &wrong).is_err());
        }
        Ok(())
    }

    #[test]
    fn the_composed_gradients_of_the_mixed_weights_are_right() -> Result<()> {
        let inputs = [normal(&[2, 3, 2, 2], 1)?, normal(&[3], 2)?, normal(&[4, 3, 1, 1], 3)?];
        check(
            |t| {
                let (weight, bias) = mix_deconvolution(&t[0], &t[1], &t[2])?;
                weight.broadcast_mul(&bias.reshape((1, 4, 1, 1))?)
            },
            &inputs,
        )
    }

    #[test]
    fn it_pays_on_maps_with_more_pixels_than_channels() {
        assert!(mixing_first_pays(64 * 64, [768, 768, 768]));
        assert!(mixing_first_pays(32 * 32, [768, 768, 256]));
        assert!(!mixing_first_pays(16 * 16, [768, 768, 768]));
    }
}
