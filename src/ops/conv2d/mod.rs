//! Two-dimensional convolution of maps `[B, C, H, W]` with torch's conventions.

mod bilinear;
mod composed;
#[cfg(feature = "cudnn")]
mod cudnn;
mod fused;
mod grid;
mod product;
mod winograd;

use candle_core::{Result, Shape, Tensor, bail};

use super::host::values;
use super::{NormRelu, count, fusible};
pub(super) use bilinear::{Bilinear, apply};
use fused::Convolution;
pub(super) use grid::{pixels_first, transpose};

/// How the kernel walks over the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Pixels between neighbouring outputs.
    pub stride: usize,
    /// Zeros around the map, the same on all four sides.
    pub padding: usize,
    /// Pixels between neighbouring taps of the kernel.
    pub dilation: usize,
    /// Blocks of channels that do not mix; as many as channels: depthwise.
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

impl Conv2d {
    /// Stride 1 and the padding that keeps the size of the map under an odd `kernel`.
    pub fn same(kernel: usize) -> Self {
        Self { padding: kernel / 2, ..Self::default() }
    }

    /// Padded pixels of an axis beyond those under the first output.
    fn rest(&self, size: usize, kernel: usize) -> Option<usize> {
        let covered = self.dilation * (kernel - 1) + 1;
        (size + 2 * self.padding).checked_sub(covered).filter(|_| size > 0)
    }

    /// How many outputs an axis of `size` pixels gives under a kernel of `kernel` taps; none if there is no pixel or the kernel does not fit.
    fn outputs(&self, size: usize, kernel: usize) -> Option<usize> {
        self.rest(size, kernel).map(|rest| rest / self.stride + 1)
    }
}

/// All sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    conv: Conv2d,
    batch: usize,
    channels: usize,
    input: (usize, usize),
    outputs: usize,
    kernel: (usize, usize),
    size: (usize, usize),
}

impl Geometry {
    /// Of a map `[B, C, H, W]` under a weight `[O, C / groups, kh, kw]`.
    pub(super) fn new(x: &Shape, weight: &Shape, conv: Conv2d) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        let (outputs, per_group, kh, kw) = weight.dims4()?;
        if conv.stride * conv.dilation * conv.groups * kh * kw == 0 {
            bail!(
                "conv2d: stride, dilation, groups and kernel must not be 0, got {conv:?} with kernel {kh}x{kw}"
            );
        }
        if per_group * conv.groups != channels || outputs % conv.groups != 0 {
            bail!(
                "conv2d: weight {:?} with {} groups does not fit a map of {channels} channels",
                weight.dims(),
                conv.groups
            );
        }
        let (Some(oh), Some(ow)) = (conv.outputs(height, kh), conv.outputs(width, kw)) else {
            bail!(
                "conv2d: a kernel of {kh}x{kw} with {conv:?} does not fit a map of {height}x{width}"
            );
        };
        Ok(Self {
            conv,
            batch,
            channels,
            input: (height, width),
            outputs,
            kernel: (kh, kw),
            size: (oh, ow),
        })
    }

    /// `[B, C, H, W]`.
    pub(super) fn input_shape(&self) -> Shape {
        Shape::from((self.batch, self.channels, self.input.0, self.input.1))
    }

    /// How many numbers the weight has.
    pub(super) fn weight_count(&self) -> usize {
        self.outputs * self.channels / self.conv.groups * self.kernel.0 * self.kernel.1
    }

    /// `[O, C / groups, kh, kw]`.
    #[cfg(feature = "cudnn")]
    fn weight_shape(&self) -> Shape {
        let (kh, kw) = self.kernel;
        Shape::from((self.outputs, self.channels / self.conv.groups, kh, kw))
    }

    /// `[B, O, H', W']`.
    fn output_shape(&self) -> Shape {
        Shape::from((self.batch, self.outputs, self.size.0, self.size.1))
    }

    /// Whether both axes leave the same remainder under the stride.
    fn even(&self) -> bool {
        let remainder =
            |size, kernel| self.conv.rest(size, kernel).map(|rest| rest % self.conv.stride);
        remainder(self.input.0, self.kernel.0) == remainder(self.input.1, self.kernel.1)
    }

    fn pointwise(&self) -> bool {
        self.kernel == (1, 1)
            && self.conv.stride == 1
            && self.conv.padding == 0
            && self.conv.groups == 1
    }

    /// Whether the kernel tiles the map without overlap: the patch embedding of a ViT.
    fn patches(&self) -> bool {
        let square = self.kernel.0 == self.conv.stride && self.kernel.1 == self.conv.stride;
        square && self.conv.padding == 0 && self.conv.dilation == 1 && self.conv.groups == 1
    }
}

/// Convolution of `x` `[B, C, H, W]` with `weight` `[O, C / groups, kh, kw]` and `bias` `[O]` → `[B, O, H', W']` with
/// H' = ⌊(H + 2·padding − dilation·(kh − 1) − 1) / stride⌋ + 1.
///
/// # Errors
/// If the shapes do not fit together.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    let geometry = Geometry::new(x.shape(), weight.shape(), conv)?;
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    if conv.groups == 1 && fusible(&inputs) {
        return apply(Convolution(geometry), x, weight, bias);
    }
    let out = unbiased(x, weight, geometry)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

/// [`conv2d`] without bias, then batch norm and ReLU: one pass where the running statistics are used and no gradient is wanted.
///
/// # Errors
/// As [`conv2d`] and [`NormRelu::forward`].
pub fn conv2d_norm_relu(
    x: &Tensor,
    weight: &Tensor,
    conv: Conv2d,
    then: NormRelu,
) -> Result<Tensor> {
    let geometry = Geometry::new(x.shape(), weight.shape(), conv)?;
    match then.folded(geometry.outputs, &[x, weight])? {
        Some(folded) if conv.groups == 1 => {
            count("conv2d.norm_relu");
            let (x, weight) = (x.contiguous()?, weight.contiguous()?);
            let y = geometry.forward(&values(&x)?, &values(&weight)?, folded.with_relu());
            then.folded_into(y, geometry.output_shape())
        }
        _ => then.forward(&conv2d(x, weight, None, conv)?),
    }
}

fn unbiased(x: &Tensor, weight: &Tensor, geometry: Geometry) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if cudnn::runs(x, weight) {
        return cudnn::convolve(x, weight, geometry);
    }
    composed::composed(x, weight, &geometry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};

    #[test]
    fn the_librarys_convolution_is_right_where_it_is_used() -> Result<()> {
        let cases = [
            ((5, 7), Conv2d { stride: 2, padding: 1, ..Conv2d::default() }),
            ((6, 8), Conv2d { stride: 2, padding: 1, ..Conv2d::default() }),
            ((5, 6), Conv2d { dilation: 2, padding: 2, ..Conv2d::default() }),
            ((5, 6), Conv2d { groups: 2, ..Conv2d::same(3) }),
        ];
        for ((height, width), conv) in cases {
            let inputs =
                [normal(&[2, 4, height, width], 1)?, normal(&[6, 4 / conv.groups, 3, 3], 2)?];
            let geometry = Geometry::new(inputs[0].shape(), inputs[1].shape(), conv)?;
            assert!(geometry.even(), "{conv:?}");
            check(|t| composed::library(&t[0], &t[1], &geometry), &inputs)?;
        }
        let odd = Conv2d { stride: 2, padding: 1, ..Conv2d::default() };
        let (map, weight) = (Shape::from((1, 1, 5, 6)), Shape::from((1, 1, 3, 3)));
        assert!(!Geometry::new(&map, &weight, odd)?.even());
        Ok(())
    }
}
