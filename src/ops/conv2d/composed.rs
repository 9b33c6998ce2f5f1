//! The convolution from primitives whose gradients are right for every geometry.

use candle_core::{Result, Tensor};

use super::{Conv2d, Geometry};
use crate::ops::product::{linear_product, rounded};

/// `x` convolved with `weight`, without a bias.
pub(super) fn composed(x: &Tensor, weight: &Tensor, geometry: &Geometry) -> Result<Tensor> {
    if geometry.pointwise() {
        return pointwise(x, weight, geometry);
    }
    if geometry.patches() {
        return patches(x, weight, geometry);
    }
    if !x.device().is_cpu() && geometry.even() {
        return library(x, weight, geometry);
    }
    columns(x, weight, geometry)
}

/// candle's own convolution; its gradients are right where both axes leave the same remainder under the stride.
pub(super) fn library(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let Conv2d { stride, padding, dilation, groups } = g.conv;
    rounded([x, weight], |[x, weight]| {
        x.contiguous()?.conv2d(&weight.contiguous()?, padding, stride, dilation, groups)
    })
}

/// A 1×1 convolution is one product per image.
fn pointwise(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let rows = x.reshape((g.batch, g.channels, ()))?;
    let weight = weight.reshape((1, g.outputs, g.channels))?;
    let out = rounded([&weight, &rows], |[weight, rows]| weight.broadcast_matmul(&rows))?;
    out.reshape((g.batch, g.outputs, g.size.0, g.size.1))
}

/// Patches that do not overlap are a permutation of the map, and the convolution is one product.
fn patches(x: &Tensor, weight: &Tensor, g: &Geometry) -> Result<Tensor> {
    let ((oh, ow), (kh, kw)) = (g.size, g.kernel);
    let x = x.narrow(2, 0, oh * kh)?.narrow(3, 0, ow * kw)?.contiguous()?;
    let x = x.reshape(vec![g.batch, g.channels, oh, kh, ow, kw])?;
    let rows =
        x.permute(vec![0, 2, 4, 1, 3, 5])?.reshape((g.batch * oh * ow, g.channels * kh * kw))?;
    let out = linear_product(&rows, &weight.reshape((g.outputs, ()))?)?;
    out.reshape((g.batch, oh * ow, g.outputs))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((g.batch, g.outputs, oh, ow))
}

/// Every output's window as a column (im2col by two selections), then one product per group.
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
    let out = rounded([&weight, &x], |[weight, x]| weight.broadcast_matmul(&x))?;
    out.reshape((g.batch, g.outputs, oh, ow))
}

/// For every tap of the kernel the padded positions that the outputs see through it.
fn window_indices(conv: Conv2d, outputs: usize, kernel: usize) -> Vec<u32> {
    let position =
        |tap: usize| (0..outputs).map(move |o| (o * conv.stride + tap * conv.dilation) as u32);
    (0..kernel).flat_map(position).collect()
}
