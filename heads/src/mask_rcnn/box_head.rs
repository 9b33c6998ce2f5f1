//! Classes and boxes of regions: fully connected layers on pooled bins, optionally after convolutions.

use candle_core::{Result, Tensor};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{Init, Scope};

use super::config::BoxHeadConfig;
use super::layers::{ConvBlock, Projection, xavier};

/// Bins along each axis that a box head sees.
pub const BOX_BINS: usize = 7;

/// The label of a region that counts nowhere.
pub const IGNORED: u32 = u32::MAX;

/// Convolutions and fully connected layers, then class scores and box deltas.
#[derive(Debug, Clone)]
pub struct BoxHead {
    convs: Vec<ConvBlock>,
    fcs: Vec<Projection>,
    cls_score: Projection,
    bbox_pred: Projection,
}

impl BoxHead {
    /// On regions of `channels`, for `classes` classes beside the background; names below `head` (`roi_heads.box_head`) and
    /// `predictor` (`roi_heads.box_predictor`): `fc6`, `fc7`, … without convolutions (torchvision's `TwoMLPHead`), the
    /// numbers of `FastRCNNConvFCHead` with them.
    ///
    /// # Errors
    /// If a scope holds one of the parameters with another shape.
    pub fn new(
        config: &BoxHeadConfig,
        (channels, classes, boxes): (usize, usize, usize),
        (head, predictor): (&Scope, &Scope),
    ) -> Result<Self> {
        let dims = (channels, config.conv_dim);
        let init = Init::KaimingNormalFanOut;
        let convs = ConvBlock::stack(config.convs, dims, config.norm, init, head)?;
        let depth = if config.convs == 0 { channels } else { config.conv_dim };
        let mut width = depth * BOX_BINS * BOX_BINS;
        let mut fcs = Vec::new();
        for i in 0..config.fcs {
            let scope = match config.convs {
                0 => head.pp(format!("fc{}", 6 + i)),
                // The flattening and each ReLU have a number too.
                n => head.pp(n + 1 + 2 * i),
            };
            fcs.push(Projection::linear((width, config.fc_dim), xavier(width), &scope)?);
            width = config.fc_dim;
        }
        let small = |output: usize, std: f64, name: &str| {
            Projection::linear((width, output), Init::Normal(std), &predictor.pp(name))
        };
        Ok(Self {
            convs,
            fcs,
            cls_score: small(classes + 1, 0.01, "cls_score")?,
            bbox_pred: small(4 * boxes, 0.001, "bbox_pred")?,
        })
    }

    /// Pooled regions `[R, C, 7, 7]` → class logits `[R, 1 + K]` (background first) and deltas `[R, 4 · boxes]`.
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn forward(&self, pooled: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut x = pooled.clone();
        for conv in &self.convs {
            x = conv.forward(&x)?;
        }
        x = x.flatten_from(1)?;
        for fc in &self.fcs {
            x = fc.forward(&x)?.relu()?;
        }
        Ok((self.cls_score.forward(&x)?, self.bbox_pred.forward(&x)?))
    }
}

/// What regions are trained towards.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegionTargets {
    /// Per region: 0 background, 1 + class, or a label that counts nowhere.
    pub labels: Vec<u32>,
    /// The regions that belong to objects, with the deltas that lead to them.
    pub positives: Vec<(usize, [f32; 4])>,
}

/// Σ cross-entropy over the regions, Σ smooth L1 of the deltas of the positives, and the number of regions, by which both are
/// divided. `logits` `[R, 1 + K]`, `deltas` `[R, 4 · (1 + K)]` or `[R, 4]`.
///
/// # Errors
/// If the shapes do not fit together.
pub fn box_losses(
    (logits, deltas): (&Tensor, &Tensor),
    targets: &RegionTargets,
    beta: f64,
) -> Result<(Tensor, Tensor, f64)> {
    let device = logits.device();
    let zero = || Tensor::zeros((), logits.dtype(), device);
    let count = targets.labels.iter().filter(|&&label| label != IGNORED).count() as f64;
    if targets.labels.is_empty() {
        return Ok((zero()?, zero()?, count));
    }
    let labels = Tensor::new(targets.labels.as_slice(), device)?;
    let options = CrossEntropy { ignore_index: IGNORED, class_weights: None };
    let (class, _) = ops::cross_entropy(logits, &labels, &options)?;
    if targets.positives.is_empty() {
        return Ok((class, zero()?, count));
    }
    let boxes = deltas.dim(1)? / 4;
    let row = |&(region, _): &(usize, [f32; 4])| {
        let class = if boxes == 1 { 0 } else { targets.labels[region] as usize };
        (region * boxes + class) as u32
    };
    let rows: Vec<u32> = targets.positives.iter().map(row).collect();
    let number = rows.len();
    let rows = Tensor::from_vec(rows, number, device)?;
    let found = deltas.reshape(((), 4))?.index_select(&rows, 0)?;
    let wanted: Vec<f32> = targets.positives.iter().flat_map(|(_, deltas)| *deltas).collect();
    let wanted = Tensor::from_vec(wanted, (number, 4), device)?.to_dtype(deltas.dtype())?;
    Ok((class, ops::smooth_l1(&(found - wanted)?, beta)?.sum_all()?, count))
}
