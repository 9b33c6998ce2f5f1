//! What segmentation heads minimise: cross-entropy, cross-entropy on the hardest pixels, Dice; alone or together.

use candle_core::{Device, Result, Tensor, bail};
use rescatter::data::LabelMap;
use rescatter::head::Term;
use rescatter::ops::{self, CrossEntropy, Dice, Ohem};
use serde::{Deserialize, Serialize};

use crate::Labels;

/// The section `loss` of a segmentation head. Nothing named means plain cross-entropy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentationLossConfig {
    /// Mean over all labelled pixels.
    pub cross_entropy: Option<CrossEntropyConfig>,
    /// Mean over the hardest pixels.
    pub ohem: Option<OhemConfig>,
    /// 1 − Dice coefficient, mean over images.
    pub dice: Option<DiceConfig>,
}

/// Cross-entropy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrossEntropyConfig {
    /// Factor in the total.
    pub weight: f64,
    /// A factor per class; the sum over pixels is then divided by the sum of their factors, as in torch.
    pub class_weights: Option<Vec<f32>>,
}

impl Default for CrossEntropyConfig {
    fn default() -> Self {
        Self { weight: 1.0, class_weights: None }
    }
}

/// Online hard example mining (Shrivastava et al., arXiv 1604.03540), for pixels as in mmsegmentation's `OHEMPixelSampler`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OhemConfig {
    /// Factor in the total.
    pub weight: f64,
    /// A pixel is hard while the probability of its class is below this; `null` takes the `min_kept` with the largest loss.
    pub threshold: Option<f64>,
    /// The threshold rises until this many pixels per image are hard.
    pub min_kept: usize,
}

impl Default for OhemConfig {
    fn default() -> Self {
        Self { weight: 1.0, threshold: Some(0.7), min_kept: 100_000 }
    }
}

/// Dice (Milletari et al., *V-Net*, arXiv 1606.04797), in mmsegmentation's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiceConfig {
    /// Factor in the total.
    pub weight: f64,
}

impl Default for DiceConfig {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

/// Which head a term comes from: the prefix of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// The head whose scores are predictions.
    Decode,
    /// The one that only helps training.
    Auxiliary,
}

/// The loss of one segmentation head.
#[derive(Debug)]
pub struct SegmentationLoss {
    config: SegmentationLossConfig,
    options: CrossEntropy,
    unweighted: CrossEntropy,
}

impl SegmentationLoss {
    /// For `labels.classes` classes.
    ///
    /// # Errors
    /// If the class weights are not one per class.
    pub fn new(config: &SegmentationLossConfig, labels: Labels, device: &Device) -> Result<Self> {
        let mut config = config.clone();
        if config == SegmentationLossConfig::default() {
            config.cross_entropy = Some(CrossEntropyConfig::default());
        }
        let class_weights =
            match config.cross_entropy.as_ref().and_then(|ce| ce.class_weights.as_ref()) {
                Some(weights) if weights.len() != labels.classes => {
                    bail!(
                        "`class_weights` has {} numbers for {} classes",
                        weights.len(),
                        labels.classes
                    )
                }
                Some(weights) => Some(Tensor::from_slice(weights, weights.len(), device)?),
                None => None,
            };
        let unweighted = CrossEntropy { ignore_index: labels.ignore_index, class_weights: None };
        Ok(Self {
            config,
            options: CrossEntropy { class_weights, ..unweighted.clone() },
            unweighted,
        })
    }

    /// The terms of one head: `logits` `[B, K, h, w]` of any size, and `labels` (u32) `[B, H, W]` of the same extent, at whose
    /// resolution the loss is taken.
    ///
    /// # Errors
    /// If the batches differ or a label is outside the classes.
    pub fn terms(&self, branch: Branch, logits: &Tensor, labels: &Tensor) -> Result<Vec<Term>> {
        let name = |decode, auxiliary| match branch {
            Branch::Decode => decode,
            Branch::Auxiliary => auxiliary,
        };
        let (_, height, width) = labels.dims3()?;
        let resized = || ops::resize_bilinear(logits, (height, width));
        let mut terms = Vec::new();
        if let Some(ce) = &self.config.cross_entropy {
            let (sum, count) = ops::cross_entropy_resized(logits, labels, &self.options)?;
            terms.push(Term { name: name("decode.ce", "aux.ce"), weight: ce.weight, sum, count });
        }
        if let Some(ohem) = &self.config.ohem {
            let hard = Ohem { thresh: ohem.threshold, min_kept: ohem.min_kept };
            let (sum, count) =
                ops::ohem_cross_entropy(&resized()?, labels, &self.unweighted, hard)?;
            terms.push(Term {
                name: name("decode.ohem", "aux.ohem"),
                weight: ohem.weight,
                sum,
                count,
            });
        }
        if let Some(dice) = &self.config.dice {
            let options = Dice { ignore_index: self.options.ignore_index, ..Dice::default() };
            let (sum, count) = ops::dice(&resized()?, labels, &options)?;
            terms.push(Term {
                name: name("decode.dice", "aux.dice"),
                weight: dice.weight,
                sum,
                count,
            });
        }
        Ok(terms)
    }
}

/// `[B, H, W]` of u32 from one label map per image, with `ignore_index` at the bottom and the right where a map is smaller
/// than `extent` = (H, W).
///
/// # Errors
/// If there is no map or one is larger than `extent`.
pub fn label_tensor(
    labels: &[LabelMap],
    extent: (usize, usize),
    ignore_index: u32,
    device: &Device,
) -> Result<Tensor> {
    let (height, width) = extent;
    let mut values = vec![ignore_index; labels.len() * height * width];
    for (values, map) in values.chunks_exact_mut(height * width).zip(labels) {
        let (h, w) = map.dim();
        if h > height || w > width {
            bail!("labels of {h}×{w} pixels under scores that cover {extent:?}");
        }
        for (values, row) in values.chunks_exact_mut(width).zip(map.rows()) {
            values.iter_mut().zip(row).for_each(|(value, &label)| *value = u32::from(label));
        }
    }
    Tensor::from_vec(values, (labels.len(), height, width), device)
}
