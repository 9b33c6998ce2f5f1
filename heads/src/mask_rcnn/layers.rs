//! The layers that the branches are made of, with torchvision's names.

use candle_core::{Result, Tensor};
use rescatter::ops::{self, Activation, Conv2d};
use rescatter::params::{Init, Scope};

use super::config::Norm;

/// ε of every norm (detectron2's `LN`).
const NORM_EPS: f64 = 1e-6;

/// 3×3 convolution, norm, ReLU: `0.weight`, then `0.bias` without a norm or `1.weight` and `1.bias` with one.
#[derive(Debug, Clone)]
pub(super) struct ConvBlock {
    weight: Tensor,
    after: After,
}

#[derive(Debug, Clone)]
enum After {
    Bias(Tensor),
    Norm(Tensor, Tensor),
}

impl ConvBlock {
    pub(super) fn new(
        (input, output): (usize, usize),
        norm: Norm,
        init: Init,
        scope: &Scope,
    ) -> Result<Self> {
        let conv = scope.pp(0);
        let weight = conv.param("weight", (output, input, 3, 3), init)?;
        let after = match norm {
            Norm::None => After::Bias(conv.param("bias", output, Init::Const(0.0))?),
            Norm::Layer => After::Norm(
                scope.pp(1).param("weight", output, Init::Const(1.0))?,
                scope.pp(1).param("bias", output, Init::Const(0.0))?,
            ),
        };
        Ok(Self { weight, after })
    }

    /// `count` of them below `scope`, from `input` channels to `output`.
    pub(super) fn stack(
        count: usize,
        (input, output): (usize, usize),
        norm: Norm,
        init: Init,
        scope: &Scope,
    ) -> Result<Vec<Self>> {
        let input = |i: usize| if i == 0 { input } else { output };
        (0..count).map(|i| Self::new((input(i), output), norm, init, &scope.pp(i))).collect()
    }

    /// The same for rows `[N, 9 · input]` of single neighbourhoods, pixel by pixel, each with all its channels → `[N, output]`.
    pub(super) fn forward_rows(&self, rows: &Tensor) -> Result<Tensor> {
        // [O, C, 3, 3] → [O, 3 · 3 · C]
        let weight = self.weight.permute((0, 2, 3, 1))?.contiguous()?.flatten_from(1)?;
        match &self.after {
            After::Bias(bias) => ops::linear(rows, &weight, Some(bias))?.relu(),
            After::Norm(scale, bias) => {
                let x = ops::linear(rows, &weight, None)?;
                ops::layer_norm(&x, scale, bias, NORM_EPS)?.relu()
            }
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.after {
            After::Bias(bias) => ops::conv2d(x, &self.weight, Some(bias), Conv2d::same(3))?.relu(),
            After::Norm(weight, bias) => {
                let x = ops::conv2d(x, &self.weight, None, Conv2d::same(3))?;
                ops::layer_norm2d(&x, (weight, bias), NORM_EPS, Activation::Relu)
            }
        }
    }
}

/// Weight `[out, in]` or `[out, in, 1, 1]`, and bias `[out]`.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Projection {
    /// A linear layer.
    pub(super) fn linear(
        (input, output): (usize, usize),
        init: Init,
        scope: &Scope,
    ) -> Result<Self> {
        Ok(Self {
            weight: scope.param("weight", (output, input), init)?,
            bias: scope.param("bias", output, Init::Const(0.0))?,
        })
    }

    /// A 1×1 convolution.
    pub(super) fn pointwise(
        (input, output): (usize, usize),
        init: Init,
        scope: &Scope,
    ) -> Result<Self> {
        Ok(Self {
            weight: scope.param("weight", (output, input, 1, 1), init)?,
            bias: scope.param("bias", output, Init::Const(0.0))?,
        })
    }

    /// `x` `[…, in]` or `[B, in, h, w]`, as the weight wants it.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.weight.rank() {
            2 => ops::linear(x, &self.weight, Some(&self.bias)),
            _ => ops::conv2d(x, &self.weight, Some(&self.bias), Conv2d::default()),
        }
    }
}

/// Uniform in ±√(3 / fan_in), Caffe2's and detectron2's start of fully connected layers.
pub(super) fn xavier(fan_in: usize) -> Init {
    Init::Uniform((3.0 / fan_in as f64).sqrt())
}
