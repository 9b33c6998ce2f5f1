//! Two-dimensional convolution of maps `[B, C, H, W]` with torch's conventions.

use candle_core::{Result, Tensor, bail};

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

    /// How many outputs an axis of `size` pixels gives under a kernel of `kernel` taps; none if the kernel does not fit.
    fn outputs(&self, size: usize, kernel: usize) -> Option<usize> {
        let covered = self.dilation * (kernel - 1) + 1;
        (size + 2 * self.padding).checked_sub(covered).map(|rest| rest / self.stride + 1)
    }
}

/// All sizes of one convolution.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    conv: Conv2d,
    batch: usize,
    channels: usize,
    outputs: usize,
    kernel: (usize, usize),
    size: (usize, usize),
}

impl Geometry {
    fn new(x: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Self> {
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
        Ok(Self { conv, batch, channels, outputs, kernel: (kh, kw), size: (oh, ow) })
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
    let geometry = Geometry::new(x, weight, conv)?;
    let out = composed(x, weight, &geometry)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(out),
    }
}

/// The convolution from primitives whose gradients are right for every geometry.
fn composed(x: &Tensor, weight: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    if geometry.pointwise() {
        return pointwise(x, weight, geometry);
    }
    if geometry.patches() {
        return patches(x, weight, geometry);
    }
    columns(x, weight, geometry)
}

/// A 1×1 convolution is one product per image.
fn pointwise(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let rows = x.reshape((g.batch, g.channels, ()))?;
    let out = weight.reshape((1, g.outputs, g.channels))?.broadcast_matmul(&rows)?;
    out.reshape((g.batch, g.outputs, g.size.0, g.size.1))
}

/// Patches that do not overlap are a permutation of the map, and the convolution is one product.
fn patches(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let ((oh, ow), (kh, kw)) = (g.size, g.kernel);
    let x = x.narrow(2, 0, oh * kh)?.narrow(3, 0, ow * kw)?.contiguous()?;
    let x = x.reshape(vec![g.batch, g.channels, oh, kh, ow, kw])?;
    let rows =
        x.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((g.batch * oh * ow, g.channels * kh * kw))?;
    let out = rows.matmul(&weight.reshape((g.outputs, ()))?.t()?)?;
    out.reshape((g.batch, oh * ow, g.outputs))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((g.batch, g.outputs, oh, ow))
}

/// Every output's window as a column (im2col by two selections), then one product per group.
///
/// candle's own convolution has wrong gradients where the two axes leave different remainders under the stride.
fn columns(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let ((oh, ow), (kh, kw), pad) = (g.size, g.kernel, g.conv.padding);
    let x = x.pad_with_zeros(2, pad, pad)?.pad_with_zeros(3, pad, pad)?;
    let rows = window_indices(g.conv, oh, kh);
    let cols = window_indices(g.conv, ow, kw);
    let x = x.index_select(&Tensor::new(rows, x.device())?, 2)?;
    let x = x.index_select(&Tensor::new(cols, x.device())?, 3)?;
    let x =
        x.reshape(vec![g.batch, g.channels, kh, oh, kw, ow])?.permute(vec![0, 1, 2, 4, 3, 5])?;
    let groups = g.conv.groups;
    let depth = g.channels / groups * kh * kw;
    let x = x.reshape((g.batch, groups, depth, oh * ow))?;
    let weight = weight.reshape((1, groups, g.outputs / groups, depth))?;
    weight.broadcast_matmul(&x)?.reshape((g.batch, g.outputs, oh, ow))
}

/// For every tap of the kernel the padded positions that the outputs see through it.
fn window_indices(conv: Conv2d, outputs: usize, kernel: usize) -> Vec<u32> {
    let position =
        |tap: usize| (0..outputs).map(move |o| (o * conv.stride + tap * conv.dilation) as u32);
    (0..kernel).flat_map(position).collect()
}
