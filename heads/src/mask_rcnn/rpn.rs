//! The region proposal network: scores and corrections of anchors, its losses, its proposals.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use rescatter::boxes::BoxCoder;
use rescatter::data::Instances;
use rescatter::head::{StepContext, Term};
use rescatter::ops;
use rescatter::params::{Init, Scope};
use rescatter::rng::Purpose;

use super::config::{Norm, RpnConfig};
use super::layers::{ConvBlock, Projection};
use super::matcher::{Label, Matcher, ignore_crowds};
use super::proposals::{ProposalOptions, ProposalSet, propose};
use super::sampler::sample;

/// Layer of the random streams that sample anchors.
const STREAM: u16 = 0;

/// 3×3 convolutions, then an objectness score and four deltas per anchor; the same weights on every level.
#[derive(Debug, Clone)]
pub struct RpnHead {
    conv: Vec<ConvBlock>,
    cls_logits: Projection,
    bbox_pred: Projection,
}

/// What it says of every anchor, level by level, flattened in the order row, column, anchor.
#[derive(Debug, Clone)]
pub struct RpnOutput {
    /// `[B, nₗ]`.
    pub logits: Vec<Tensor>,
    /// `[B, nₗ, 4]`.
    pub deltas: Vec<Tensor>,
}

impl RpnHead {
    /// On maps of `channels`, with `ratios` anchors per position; names below `scope` (that of `rpn.head`).
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(channels: usize, ratios: usize, convs: usize, scope: &Scope) -> Result<Self> {
        let init = Init::Normal(0.01);
        let both = (channels, channels);
        Ok(Self {
            conv: ConvBlock::stack(convs, both, Norm::None, init, &scope.pp("conv"))?,
            cls_logits: Projection::pointwise((channels, ratios), init, &scope.pp("cls_logits"))?,
            bbox_pred: Projection::pointwise((channels, 4 * ratios), init, &scope.pp("bbox_pred"))?,
        })
    }

    /// `levels`: `[B, C, hₗ, wₗ]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, levels: &[Tensor]) -> Result<RpnOutput> {
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for level in levels {
            let mut x = level.clone();
            for conv in &self.conv {
                x = conv.forward(&x)?;
            }
            let batch = x.dim(0)?;
            let last = |map: Tensor| map.permute((0, 2, 3, 1))?.contiguous();
            logits.push(last(self.cls_logits.forward(&x)?)?.reshape((batch, ()))?);
            deltas.push(last(self.bbox_pred.forward(&x)?)?.reshape((batch, (), 4))?);
        }
        Ok(RpnOutput { logits, deltas })
    }
}

/// The anchors of one image that are trained on, numbered through all levels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnchorTargets {
    /// With the deltas that lead to their objects.
    pub positives: Vec<(usize, [f32; 4])>,
    /// Background.
    pub negatives: Vec<usize>,
}

/// Matches and samples the anchors of one image.
pub fn anchor_targets(
    config: &RpnConfig,
    anchors: &[[f32; 4]],
    objects: &Instances,
    (ctx, sample_number): (&StepContext, u64),
) -> AnchorTargets {
    let mut found = Matcher::anchors(config.thresholds).assign(&objects.boxes, anchors);
    ignore_crowds(&objects.crowds, anchors, &mut found.labels);
    let mut stream = ctx.rng.stream(Purpose::RoiSampling, sample_number, STREAM);
    let chosen = sample(&found.labels, config.sampled, config.positive_fraction, &mut stream);
    debug_assert!(chosen.positives.iter().all(|&i| found.labels[i] == Label::Positive));
    let target =
        |i: usize| (i, BoxCoder::PLAIN.encode(anchors[i], objects.boxes[found.matched[i]]));
    AnchorTargets {
        positives: chosen.positives.into_iter().map(target).collect(),
        negatives: chosen.negatives,
    }
}

impl RpnOutput {
    /// `rpn.objectness`, the binary cross-entropy over the sampled anchors, and `rpn.box`, smooth L1 of the deltas of the
    /// positives; both are divided by the number of sampled anchors.
    ///
    /// # Errors
    /// If an anchor is not there.
    pub fn losses(&self, targets: &[AnchorTargets], beta: f64) -> Result<[Term; 2]> {
        let logits = Tensor::cat(&self.logits, 1)?;
        let (_, count) = logits.dims2()?;
        let device = logits.device().clone();
        let (mut positives, mut negatives, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
        for (image, target) in targets.iter().enumerate() {
            let number = |anchor: usize| (image * count + anchor) as u32;
            positives.extend(target.positives.iter().map(|(anchor, _)| number(*anchor)));
            deltas.extend(target.positives.iter().flat_map(|(_, deltas)| *deltas));
            negatives.extend(target.negatives.iter().map(|&anchor| number(anchor)));
        }
        let sampled = positives.len() + negatives.len();
        let truth: Vec<f32> =
            (0..sampled).map(|i| if i < positives.len() { 1.0 } else { 0.0 }).collect();
        let chosen: Vec<u32> = positives.iter().chain(&negatives).copied().collect();
        let objectness = if sampled == 0 {
            Tensor::zeros((), logits.dtype(), &device)?
        } else {
            let chosen = Tensor::from_vec(chosen, sampled, &device)?;
            let scores = logits.flatten_all()?.index_select(&chosen, 0)?;
            let truth = Tensor::from_vec(truth, sampled, &device)?.to_dtype(logits.dtype())?;
            ops::bce_with_logits(&scores, &truth)?.sum_all()?
        };
        let boxes = if positives.is_empty() {
            Tensor::zeros((), logits.dtype(), &device)?
        } else {
            let number = positives.len();
            let positives = Tensor::from_vec(positives, number, &device)?;
            let found = Tensor::cat(&self.deltas, 1)?.reshape(((), 4))?;
            let found = found.index_select(&positives, 0)?;
            let wanted =
                Tensor::from_vec(deltas, (number, 4), &device)?.to_dtype(logits.dtype())?;
            ops::smooth_l1(&(found - wanted)?, beta)?.sum_all()?
        };
        let term = |name, sum| Term { name, weight: 1.0, sum, count: sampled as f64 };
        Ok([term("rpn.objectness", objectness), term("rpn.box", boxes)])
    }

    /// The proposals of every image; `sizes` are the images' heights and widths. No gradient.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn proposals(
        &self,
        anchors: &[Vec<[f32; 4]>],
        sizes: &[(usize, usize)],
        options: &ProposalOptions,
    ) -> Result<Vec<ProposalSet>> {
        let host =
            |levels: &[Tensor]| -> Result<Vec<Vec<f32>>> { levels.iter().map(on_host).collect() };
        let (logits, deltas) = (host(&self.logits)?, host(&self.deltas)?);
        let images = sizes.par_iter().enumerate().map(|(image, &size)| {
            let levels: Vec<_> = anchors
                .iter()
                .enumerate()
                .map(|(l, anchors)| {
                    let count = anchors.len();
                    let logits = &logits[l][image * count..][..count];
                    let (deltas, _) = deltas[l][4 * image * count..][..4 * count].as_chunks::<4>();
                    (logits, deltas, anchors.as_slice())
                })
                .collect();
            propose(&levels, size, options)
        });
        Ok(images.collect())
    }
}

/// All values of a tensor.
pub(super) fn on_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.detach().to_dtype(candle_core::DType::F32)?.flatten_all()?;
    tensor.to_device(&Device::Cpu)?.to_vec1()
}
