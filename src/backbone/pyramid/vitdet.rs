//! The simple feature pyramid of ViTDet (Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection*,
//! ECCV 2022, arXiv 2203.16527, §3 and Fig. 2c): every level from the last map alone. detectron2's names `simfp_2` …
//! `simfp_5`.

use candle_core::{Result, Tensor};

use crate::ops::{self, Activation, Conv2d};
use crate::params::{Init, Scope};

/// ε of its norms.
const NORM_EPS: f64 = 1e-6;

/// One map of stride p → maps of strides p/4, p/2, p, 2p and 4p (p2 … p6 for p = 16), all with the same channels.
#[derive(Debug, Clone)]
pub struct SimplePyramid {
    /// Deconvolution, norm, GELU, deconvolution, projection.
    p2: (Deconvolution, Norm, Deconvolution, Projection),
    p3: (Deconvolution, Projection),
    p4: Projection,
    p5: Projection,
}

impl SimplePyramid {
    /// From `dim` channels to `channels`, directly below `scope` (the backbone's).
    ///
    /// # Errors
    /// If the parameters exist with other shapes.
    pub fn new(dim: usize, channels: usize, scope: &Scope) -> Result<Self> {
        let level = |i: usize| scope.pp(format!("simfp_{i}"));
        let (half, quarter) = (dim / 2, dim / 4);
        let (p2, p3) = (level(2), level(3));
        Ok(Self {
            p2: (
                Deconvolution::new(dim, half, &p2.pp(0))?,
                Norm::new(half, &p2.pp(1))?,
                Deconvolution::new(half, quarter, &p2.pp(3))?,
                Projection::new((quarter, channels), 4, &p2)?,
            ),
            p3: (
                Deconvolution::new(dim, half, &p3.pp(0))?,
                Projection::new((half, channels), 1, &p3)?,
            ),
            p4: Projection::new((dim, channels), 0, &level(4))?,
            p5: Projection::new((dim, channels), 1, &level(5))?,
        })
    }

    /// `x` `[B, dim, h, w]` → p2 … p6, `[B, channels, 4h, 4w]` to `[B, channels, ⌈⌊h/2⌋/2⌉, ⌈⌊w/2⌋/2⌉]`.
    ///
    /// # Errors
    /// If `x` has other channels, or a side of less than two.
    pub fn forward(&self, x: &Tensor) -> Result<[Tensor; 5]> {
        let (first, norm, second, projection) = &self.p2;
        let finest = ops::gelu(&norm.forward(&first.forward(x)?)?)?;
        let p2 = projection.forward(&second.forward(&finest)?)?;
        let p3 = self.p3.1.forward(&self.p3.0.forward(x)?)?;
        let p5 = self.p5.forward(&ops::max_pool2d(x, 2, 2, 0)?)?;
        let p6 = ops::max_pool2d(&p5, 1, 2, 0)?;
        Ok([p2, p3, self.p4.forward(x)?, p5, p6])
    }
}

/// Transposed convolution with kernel and stride 2.
#[derive(Debug, Clone)]
struct Deconvolution {
    weight: Tensor,
    bias: Tensor,
}

impl Deconvolution {
    fn new(input: usize, output: usize, scope: &Scope) -> Result<Self> {
        let bound = 1.0 / (4.0 * output as f64).sqrt(); // torch's fan-in of a transposed convolution: out · 2 · 2
        Ok(Self {
            weight: scope.param("weight", (input, output, 2, 2), Init::KaimingUniform)?,
            bias: scope.param("bias", output, Init::Uniform(bound))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv_transpose2x2(x, &self.weight, Some(&self.bias))
    }
}

/// Layer norm over the channels.
#[derive(Debug, Clone)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(channels: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            weight: scope.param("weight", channels, Init::Const(1.0))?,
            bias: scope.param("bias", channels, Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm2d(x, (&self.weight, &self.bias), NORM_EPS, Activation::None)
    }
}

/// 1×1 and 3×3 convolution without bias, each followed by a norm: two neighbouring numbers below the level's name.
#[derive(Debug, Clone)]
struct Projection {
    reduce: (Tensor, Norm),
    smooth: (Tensor, Norm),
}

impl Projection {
    fn new((input, output): (usize, usize), number: usize, level: &Scope) -> Result<Self> {
        let conv = |input: usize, kernel: usize, scope: &Scope| -> Result<(Tensor, Norm)> {
            let shape = (output, input, kernel, kernel);
            let weight = scope.param("weight", shape, Init::KaimingUniform)?;
            Ok((weight, Norm::new(output, &scope.pp("norm"))?))
        };
        Ok(Self {
            reduce: conv(input, 1, &level.pp(number))?,
            smooth: conv(output, 3, &level.pp(number + 1))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, norm) = &self.reduce;
        let x = norm.forward(&ops::conv2d(x, weight, None, Conv2d::default())?)?;
        let (weight, norm) = &self.smooth;
        norm.forward(&ops::conv2d(&x, weight, None, Conv2d::same(3))?)
    }
}
