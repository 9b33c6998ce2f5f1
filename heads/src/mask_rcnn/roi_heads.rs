//! The second stage: box heads (one, or a cascade) and the mask head on pooled regions.

use candle_core::{Result, Tensor, bail};
use ndarray::Array2;
use rescatter::boxes::{BoxCoder, area, clip};
use rescatter::data::Instances;
use rescatter::head::Term;
use rescatter::ops::Roi;
use rescatter::params::Scope;

use super::box_head::{BOX_BINS, BoxHead, box_losses};
use super::config::{LEVELS, MAX_STAGES, MaskRcnnConfig};
use super::detections::Candidates;
use super::mask_head::{MASK_BINS, MASK_SIZE, MaskHead, mask_loss, mask_targets, probabilities};
use super::pooler::RoiPooler;
use super::proposals::ProposalSet;
use super::regions::Regions;
use super::rpn::on_host;

/// p2 … p5; p6 is for proposals alone.
const POOLED: usize = LEVELS - 1;
/// The number of the finest level, and of the one at the patch size.
const FIRST_LEVEL: usize = 2;
const PATCH_LEVEL: usize = 4;

/// What a user reads whose data set has boxes alone.
const NO_MASKS: &str =
    "the data set has no masks; `head.mask_rcnn.mask_head: null` trains boxes alone";

/// Names of the terms of the cascade's stages.
const STAGE_TERMS: [(&str, &str); MAX_STAGES] = [
    ("roi.class.0", "roi.box.0"),
    ("roi.class.1", "roi.box.1"),
    ("roi.class.2", "roi.box.2"),
    ("roi.class.3", "roi.box.3"),
    ("roi.class.4", "roi.box.4"),
];

/// Box heads, mask head and what they pool with.
#[derive(Debug, Clone)]
pub struct RoiHeads {
    stages: Vec<Stage>,
    mask: Option<MaskHead>,
    /// What the box heads see.
    pub box_pooler: RoiPooler,
    /// What the mask head sees.
    pub mask_pooler: RoiPooler,
    score_threshold: f32,
    beta: f64,
    max_masks: usize,
}

#[derive(Debug, Clone)]
struct Stage {
    head: BoxHead,
    coder: BoxCoder,
    iou: f32,
}

impl RoiHeads {
    /// For `classes` classes beside the background, on levels with `strides` (pixels, fine to coarse); names below `scope`
    /// (that of `roi_heads`).
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        config: &MaskRcnnConfig,
        classes: usize,
        strides: &[f32],
        scope: &Scope,
    ) -> Result<Self> {
        let boxes = if config.class_agnostic() { 1 } else { classes + 1 };
        let sizes = (config.channels, classes, boxes);
        let (head, predictor) = (scope.pp("box_head"), scope.pp("box_predictor"));
        let stage = |(k, (weights, iou)): (usize, ([f32; 4], f32))| -> Result<Stage> {
            let scopes = match config.cascade {
                Some(_) => (head.pp(k), predictor.pp(k)),
                None => (head.clone(), predictor.clone()),
            };
            let head = BoxHead::new(&config.box_head, sizes, (&scopes.0, &scopes.1))?;
            Ok(Stage { head, coder: BoxCoder { weights }, iou })
        };
        let stages = config.stages().into_iter().enumerate().map(stage);
        let mask = config.mask_head.as_ref();
        let pooler = |size: usize, sampling_ratio: usize| RoiPooler {
            size,
            sampling_ratio,
            strides: strides.iter().copied().take(POOLED).collect(),
            min_level: FIRST_LEVEL,
            canonical_size: config.roi.canonical_size,
            canonical_level: PATCH_LEVEL,
        };
        Ok(Self {
            stages: stages.collect::<Result<_>>()?,
            mask: mask
                .map(|mask| MaskHead::new(mask, (config.channels, classes), scope))
                .transpose()?,
            box_pooler: pooler(BOX_BINS, config.box_head.sampling_ratio),
            mask_pooler: pooler(MASK_BINS, mask.map_or(0, |mask| mask.sampling_ratio)),
            score_threshold: config.detections.score_threshold,
            beta: config.box_head.beta,
            max_masks: mask.and_then(|mask| mask.max_sampled).unwrap_or(usize::MAX),
        })
    }

    /// IoU from which on a sampled region belongs to an object.
    pub fn iou(&self) -> f32 {
        self.stages.first().map_or(0.5, |stage| stage.iou)
    }

    /// Class logits `[R, 1 + K]` and deltas of stage `stage`; `levels` are p2 … p5 (and may go on).
    ///
    /// # Errors
    /// If the levels do not fit.
    pub fn box_branch(
        &self,
        stage: usize,
        levels: &[Tensor],
        rois: &[Roi],
    ) -> Result<(Tensor, Tensor)> {
        // The losses of the stages are added, and their gradients to the features averaged (detectron2's _ScaleGradient).
        let share = 1.0 / self.stages.len() as f32;
        let pooled = self.box_pooler.pool(pooled_levels(levels, &self.box_pooler)?, rois, share)?;
        self.stages[stage].head.forward(&pooled)
    }

    /// Mask logits of all classes, `[R, 1 + K, 28, 28]`.
    ///
    /// # Errors
    /// If there is no mask head or the levels do not fit.
    pub fn mask_branch(&self, levels: &[Tensor], rois: &[Roi]) -> Result<Tensor> {
        let Some(mask) = &self.mask else { bail!("the model has no mask head") };
        let levels = pooled_levels(levels, &self.mask_pooler)?;
        mask.forward(&self.mask_pooler.pool(levels, rois, 1.0)?)
    }

    /// The terms of the box heads and of the mask head for `regions` of the first stage.
    ///
    /// # Errors
    /// If regions and objects do not fit together.
    pub fn losses(
        &self,
        levels: &[Tensor],
        regions: Regions,
        objects: &[Instances],
    ) -> Result<Vec<Term>> {
        let mask = self.mask_term(levels, &regions, objects)?;
        let sizes: Vec<(usize, usize)> = objects.iter().map(|objects| objects.size).collect();
        let mut terms = Vec::new();
        let mut regions = regions.by_level(&self.box_pooler);
        for (k, stage) in self.stages.iter().enumerate() {
            let (logits, deltas) = self.box_branch(k, levels, &regions.rois)?;
            let targets = regions.targets(stage.coder, objects);
            let (class, boxes, count) = box_losses((&logits, &deltas), &targets, self.beta)?;
            let (class_name, box_name) = match self.stages.len() {
                1 => ("roi.class", "roi.box"),
                _ => STAGE_TERMS[k],
            };
            terms.push(Term { name: class_name, weight: 1.0, sum: class, count });
            terms.push(Term { name: box_name, weight: 1.0, sum: boxes, count });
            if let Some(next) = self.stages.get(k + 1) {
                let mut rois = refined(stage.coder, &regions.rois, &on_host(&deltas)?, &sizes);
                rois.retain(|roi| area(roi.bounds) > 0.0);
                regions = Regions::matched(next.iou, &rois, objects).by_level(&self.box_pooler);
            }
        }
        terms.extend(mask);
        Ok(terms)
    }

    fn mask_term(
        &self,
        levels: &[Tensor],
        regions: &Regions,
        objects: &[Instances],
    ) -> Result<Option<Term>> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let positives = self.limited(regions);
        let regions = regions.picked(&positives).by_level(&self.mask_pooler);
        let mut pairs = Vec::new();
        for (roi, &matched) in regions.rois.iter().zip(&regions.matched) {
            let Instances { masks, size, .. } = &objects[roi.image];
            match masks.get(matched) {
                Some(mask) => pairs.push((roi.bounds, mask, *size)),
                None => return Err(candle_core::Error::Msg(NO_MASKS.into())),
            }
        }
        let (sum, count) = if pairs.is_empty() {
            (Tensor::zeros((), levels[0].dtype(), levels[0].device())?, 0.0)
        } else {
            let levels = pooled_levels(levels, &self.mask_pooler)?;
            let pooled = self.mask_pooler.pool(levels, &regions.rois, 1.0)?;
            let logits = mask.forward_classes(&pooled, &regions.labels)?;
            mask_loss(&logits, mask_targets(&pairs, MASK_SIZE))?
        };
        Ok(Some(Term { name: "roi.mask", weight: 1.0, sum, count }))
    }

    /// The first positives of every image.
    fn limited(&self, regions: &Regions) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut positives = regions.positives();
        positives.retain(|&i| {
            let image = regions.rois[i].image;
            seen.resize(seen.len().max(image + 1), 0);
            seen[image] += 1;
            seen[image] <= self.max_masks
        });
        positives
    }

    /// The scored boxes of every image of `sizes` (height, width), in the order proposal, class; no gradient.
    ///
    /// # Errors
    /// If the levels do not fit.
    pub fn candidates(
        &self,
        levels: &[Tensor],
        proposals: &[ProposalSet],
        sizes: &[(usize, usize)],
    ) -> Result<Vec<Candidates>> {
        let all = proposals.iter().enumerate();
        let all: Vec<Roi> = all
            .flat_map(|(image, set)| set.boxes.iter().map(move |&bounds| Roi { image, bounds }))
            .collect();
        let order = self.box_pooler.by_level(&all);
        let mut rois: Vec<Roi> = order.iter().map(|&i| all[i]).collect();
        let mut found = vec![Candidates::default(); sizes.len()];
        if rois.is_empty() {
            return Ok(found);
        }
        let (mut scores, mut last) = (Vec::new(), Vec::new());
        for k in 0..self.stages.len() {
            if let Some(before) = k.checked_sub(1).map(|k| &self.stages[k]) {
                rois = refined(before.coder, &rois, &last, sizes);
            }
            let (logits, deltas) = self.box_branch(k, levels, &rois)?;
            add_probabilities(&on_host(&logits)?, logits.dim(1)?, &mut scores);
            last = on_host(&deltas)?;
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &i)| places[i] = place);
        let Some(stage) = self.stages.last() else { return Ok(found) };
        let (classes, boxes) = (scores.len() / rois.len(), last.len() / (4 * rois.len()));
        let (deltas, _) = last.as_chunks::<4>();
        for place in places {
            let Roi { image, bounds } = rois[place];
            for class in 1..classes {
                let score = scores[place * classes + class] / self.stages.len() as f32;
                if score > self.score_threshold {
                    let delta = deltas[place * boxes + if boxes == 1 { 0 } else { class }];
                    let decoded = clip(stage.coder.decode(bounds, delta), sizes[image]);
                    if !decoded.iter().all(|v| v.is_finite()) {
                        continue;
                    }
                    found[image].boxes.push(decoded);
                    found[image].scores.push(score);
                    found[image].classes.push(class as u32 - 1);
                }
            }
        }
        Ok(found)
    }

    /// The masks of the chosen boxes of every image, probabilities `[28, 28]`; nothing without a mask head. No gradient.
    ///
    /// # Errors
    /// If the levels do not fit.
    pub fn masks(&self, levels: &[Tensor], chosen: &[Candidates]) -> Result<Vec<Vec<Array2<f32>>>> {
        let mut masks: Vec<Vec<Array2<f32>>> = vec![Vec::new(); chosen.len()];
        let all = chosen.iter().enumerate().flat_map(|(image, chosen)| {
            let pairs = chosen.boxes.iter().zip(&chosen.classes);
            pairs.map(move |(&bounds, &class)| (Roi { image, bounds }, 1 + class))
        });
        let (rois, classes): (Vec<Roi>, Vec<u32>) = all.unzip();
        let Some(mask) = self.mask.as_ref().filter(|_| !rois.is_empty()) else { return Ok(masks) };
        let levels = pooled_levels(levels, &self.mask_pooler)?;
        let pooled = self.mask_pooler.pool(levels, &rois, 1.0)?;
        let found = probabilities(&mask.forward_classes(&pooled, &classes)?)?;
        for (roi, mask) in rois.iter().zip(found) {
            masks[roi.image].push(mask);
        }
        Ok(masks)
    }
}

fn pooled_levels<'a>(levels: &'a [Tensor], pooler: &RoiPooler) -> Result<&'a [Tensor]> {
    match levels.get(..pooler.strides.len()) {
        Some(levels) => Ok(levels),
        None => bail!("{} levels are pooled from, got {}", pooler.strides.len(), levels.len()),
    }
}

/// The regions as one stage corrects them, clipped to their images.
fn refined(coder: BoxCoder, rois: &[Roi], deltas: &[f32], sizes: &[(usize, usize)]) -> Vec<Roi> {
    let one = |(roi, delta): (&Roi, &[f32; 4])| {
        let bounds = clip(coder.decode(roi.bounds, *delta), sizes[roi.image]);
        Roi { bounds, ..*roi }
    };
    rois.iter().zip(deltas.as_chunks::<4>().0).map(one).collect()
}

/// Adds softmax over rows of `classes` logits.
fn add_probabilities(logits: &[f32], classes: usize, sums: &mut Vec<f32>) {
    sums.resize(logits.len(), 0.0);
    for (sums, logits) in sums.chunks_exact_mut(classes).zip(logits.chunks_exact(classes)) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = logits.iter().map(|x| (x - largest).exp()).sum();
        sums.iter_mut().zip(logits).for_each(|(sum, x)| *sum += (x - largest).exp() / total);
    }
}
