//! Masks of regions: convolutions, a deconvolution, one score per class and pixel.

use candle_core::{Result, Tensor};
use ndarray::Array2;
use rayon::prelude::*;
use rescatter::data::InstanceMask;
use rescatter::ops;
use rescatter::params::{Init, Scope};

use super::config::MaskHeadConfig;
use super::layers::{ConvBlock, Projection};

/// Bins along each axis that a mask head sees.
pub const MASK_BINS: usize = 14;

/// Pixels along each axis of a predicted mask.
pub const MASK_SIZE: usize = 2 * MASK_BINS;

/// Names `mask_head.i.0`, `mask_predictor.conv5_mask`, `mask_predictor.mask_fcn_logits`.
#[derive(Debug, Clone)]
pub struct MaskHead {
    convs: Vec<ConvBlock>,
    deconv: (Tensor, Tensor),
    logits: Projection,
}

impl MaskHead {
    /// On regions of `channels`, for `classes` classes beside the background; names below `scope` (that of `roi_heads`).
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        config: &MaskHeadConfig,
        (channels, classes): (usize, usize),
        scope: &Scope,
    ) -> Result<Self> {
        let (dim, init) = (config.dim, Init::KaimingNormalFanOut);
        let dims = (channels, dim);
        let convs =
            ConvBlock::stack(config.convs, dims, config.norm, init, &scope.pp("mask_head"))?;
        let input = if config.convs == 0 { channels } else { dim };
        let predictor = scope.pp("mask_predictor");
        let conv5 = predictor.pp("conv5_mask");
        let deconv = (
            conv5.param("weight", (input, dim, 2, 2), init)?,
            conv5.param("bias", dim, Init::Const(0.0))?,
        );
        let small = Init::Normal(0.001);
        let scope = predictor.pp("mask_fcn_logits");
        let logits = Projection::pointwise((dim, classes + 1), small, &scope)?;
        Ok(Self { convs, deconv, logits })
    }

    fn hidden(&self, pooled: &Tensor) -> Result<Tensor> {
        let mut x = pooled.clone();
        for conv in &self.convs {
            x = conv.forward(&x)?;
        }
        ops::conv_transpose2x2(&x, &self.deconv.0, Some(&self.deconv.1))?.relu()
    }

    /// Pooled regions `[R, C, 14, 14]` → logits of all classes `[R, 1 + K, 28, 28]` (background first).
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        self.logits.forward(&self.hidden(pooled)?)
    }

    /// The logits of one class per region, `[R, 28, 28]`: all that training and inference look at. `classes` count from 1.
    ///
    /// # Errors
    /// If the sizes differ or a class is not there.
    pub fn forward_classes(&self, pooled: &Tensor, classes: &[u32]) -> Result<Tensor> {
        let hidden = self.hidden(pooled)?;
        let (regions, dim, height, width) = hidden.dims4()?;
        let classes = Tensor::new(classes, hidden.device())?;
        let weight = self.logits.weight.flatten_from(1)?.index_select(&classes, 0)?;
        let bias = self.logits.bias.index_select(&classes, 0)?.reshape((regions, 1, 1))?;
        // One row of the 1×1 convolution per region: [R, 1, C] · [R, C, 28²].
        let rows = hidden.reshape((regions, dim, height * width))?;
        let scores = weight.reshape((regions, 1, dim))?.matmul(&rows)?;
        scores.broadcast_add(&bias)?.reshape((regions, height, width))
    }
}

/// What the masks of regions are trained towards: 1 where RoIAlign of the object's bitmap gives at least ½, `size × size` per
/// region. `image`: height and width of the image.
pub fn mask_targets(
    regions: &[([f32; 4], &InstanceMask, (usize, usize))],
    size: usize,
) -> Vec<f32> {
    let one = |(bounds, mask, image): &([f32; 4], &InstanceMask, (usize, usize))| {
        let shares = ops::roi_align_bitmap(mask, *bounds, size, *image);
        shares.into_iter().map(|share| if share >= 0.5 { 1.0 } else { 0.0 }).collect::<Vec<_>>()
    };
    regions.par_iter().flat_map_iter(one).collect()
}

/// Σ binary cross-entropy over the pixels of `logits` `[R, M, M]` against `targets` (0 or 1), and their number.
///
/// # Errors
/// If the sizes differ.
pub fn mask_loss(logits: &Tensor, targets: Vec<f32>) -> Result<(Tensor, f64)> {
    let count = targets.len() as f64;
    let targets =
        Tensor::from_vec(targets, logits.shape(), logits.device())?.to_dtype(logits.dtype())?;
    Ok((ops::bce_with_logits(logits, &targets)?.sum_all()?, count))
}

/// σ of the logits `[R, M, M]`, on the host.
///
/// # Errors
/// If tensor arithmetic fails.
pub fn probabilities(logits: &Tensor) -> Result<Vec<Array2<f32>>> {
    let (regions, height, width) = logits.dims3()?;
    let values = super::rpn::on_host(logits)?;
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let one = |i: usize| {
        let values = &values[i * height * width..][..height * width];
        Array2::from_shape_fn((height, width), |(y, x)| sigmoid(values[y * width + x]))
    };
    Ok((0..regions).map(one).collect())
}
