//! Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870) on ViTDet's simple feature pyramid (Li et al., ECCV 2022, arXiv
//! 2203.16527), as detectron2 builds it, with torchvision's parameter names: class 0 is the background inside the head, and
//! classes count from 0 without it outside.
//!
//! Letters: `R` regions of a batch, `A` anchors per position, `K` classes without the background, `M` pixels along an axis of
//! a mask. Levels are p2 … p6 with strides p/4 … 4p for patches of p pixels.

pub mod anchors;
pub mod box_head;
pub mod config;
pub mod detections;
pub mod flops;
mod layers;
pub mod mask_head;
pub mod matcher;
pub mod paste;
pub mod pooler;
pub mod proposals;
pub mod regions;
pub mod roi_heads;
pub mod rpn;
pub mod sampler;

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::backbone::pyramid::SimplePyramid;
use rescatter::data::Instances;
use rescatter::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext};
use rescatter::params::Scope;

pub use config::MaskRcnnConfig;
pub use detections::{Candidates, Detections};

use self::anchors::anchors;
use self::config::{LEVELS, Proposals};
use self::proposals::{ProposalOptions, ProposalSet};
use self::regions::Regions;
use self::roi_heads::RoiHeads;
use self::rpn::{RpnHead, RpnOutput, anchor_targets};

/// The detector on one tapped map.
#[derive(Debug)]
pub struct MaskRcnn {
    config: MaskRcnnConfig,
    strides: [f32; LEVELS],
    classes: usize,
    trained: Parts,
    /// The same parameters without gradients, so that inference keeps no activation.
    inference: Parts,
}

#[derive(Debug)]
struct Parts {
    pyramid: SimplePyramid,
    rpn: RpnHead,
    roi_heads: RoiHeads,
}

/// One look at a batch of images: what the mask head needs later, and the boxes before suppression.
#[derive(Debug, Clone)]
pub struct Look {
    /// p2 … p6.
    pub levels: Vec<Tensor>,
    /// One per image.
    pub candidates: Vec<Candidates>,
}

impl MaskRcnn {
    /// For `classes` classes beside the background; names `backbone.simfp_…`, `rpn.…` and `roi_heads.…` below `root`.
    ///
    /// # Errors
    /// If the config does not fit together, or the scope holds one of the parameters with another shape.
    pub fn new(
        config: &MaskRcnnConfig,
        spec: &FeatureSpec,
        classes: usize,
        root: &Scope,
    ) -> Result<Self> {
        config.check().map_err(candle_core::Error::wrap)?;
        // p4 has the stride of the patches.
        let strides = [0.25, 0.5, 1.0, 2.0, 4.0].map(|factor| factor * spec.stride_px);
        let parts = |root: &Scope| -> Result<Parts> {
            let pyramid = SimplePyramid::new(spec.channels, config.channels, &root.pp("backbone"))?;
            let ratios = config.anchors.ratios.len();
            let rpn = root.pp("rpn").pp("head");
            Ok(Parts {
                pyramid,
                rpn: RpnHead::new(config.channels, ratios, config.rpn.convs, &rpn)?,
                roi_heads: RoiHeads::new(config, classes, &strides, &root.pp("roi_heads"))?,
            })
        };
        let (trained, inference) = (parts(&root.trainable())?, parts(&root.frozen())?);
        Ok(Self { config: config.clone(), strides, classes, trained, inference })
    }

    /// K.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whether it predicts masks.
    pub fn has_masks(&self) -> bool {
        self.config.mask_head.is_some()
    }

    /// The section of the config.
    pub fn config(&self) -> &MaskRcnnConfig {
        &self.config
    }

    /// The boxes of every image before suppression, without gradients.
    ///
    /// # Errors
    /// If features and images do not fit together.
    pub fn look(&self, features: &Features, images: &[ImageMeta]) -> Result<Look> {
        let parts = &self.inference;
        let levels = parts.pyramid.forward(&the_map(features, images.len())?.detach())?;
        let sizes: Vec<(usize, usize)> = images.iter().map(|meta| meta.input).collect();
        let output = parts.rpn.forward(&levels)?;
        let proposals = self.propose(&output, &levels, &sizes, |p| p.test)?;
        let candidates = parts.roi_heads.candidates(&levels, &proposals, &sizes)?;
        Ok(Look { levels: levels.to_vec(), candidates })
    }

    /// The mask probabilities of chosen boxes, image by image; nothing without a mask head.
    ///
    /// # Errors
    /// If the boxes do not belong to these images.
    pub fn masks(
        &self,
        look: &Look,
        chosen: &[Candidates],
    ) -> Result<Vec<Vec<ndarray::Array2<f32>>>> {
        self.inference.roi_heads.masks(&look.levels, chosen)
    }

    fn anchors(&self, levels: &[Tensor]) -> Result<Vec<Vec<[f32; 4]>>> {
        let shape = |level: &Tensor| level.dims4().map(|(_, _, height, width)| (height, width));
        let shapes = levels.iter().map(shape).collect::<Result<Vec<_>>>()?;
        Ok(anchors(&self.config.anchors, &self.strides, &shapes))
    }

    fn propose(
        &self,
        output: &RpnOutput,
        levels: &[Tensor],
        sizes: &[(usize, usize)],
        number: impl Fn(Proposals) -> usize,
    ) -> Result<Vec<ProposalSet>> {
        let rpn = &self.config.rpn;
        let options = ProposalOptions {
            pre_nms: number(rpn.pre_nms),
            post_nms: number(rpn.post_nms),
            nms: rpn.nms,
            min_size: rpn.min_size,
        };
        output.proposals(&self.anchors(levels)?, sizes, &options)
    }
}

impl Head for MaskRcnn {
    type Target = Instances;
    type Prediction = Detections;

    fn losses(
        &self,
        features: &Features,
        targets: &[Instances],
        ctx: &StepContext,
    ) -> Result<Losses> {
        let parts = &self.trained;
        check_classes(targets, self.classes)?;
        let levels = parts.pyramid.forward(the_map(features, targets.len())?)?;
        let all: Vec<[f32; 4]> = self.anchors(&levels)?.concat();
        let sampled = targets.iter().enumerate().map(|(image, objects)| {
            let number = ctx.samples.get(image).copied().unwrap_or(image as u64);
            anchor_targets(&self.config.rpn, &all, objects, (ctx, number))
        });
        let sampled: Vec<_> = sampled.collect();
        let beta = self.config.rpn.beta;
        let mut terms = rpn::losses(&parts.rpn, &levels, &sampled, beta)?.to_vec();
        let detached = levels.each_ref().map(Tensor::detach);
        let output = self.inference.rpn.forward(&detached)?;
        let sizes: Vec<(usize, usize)> = targets.iter().map(|objects| objects.size).collect();
        let proposals = self.propose(&output, &levels, &sizes, |p| p.train)?;
        let iou = parts.roi_heads.iou();
        let regions = Regions::sampled(&self.config.roi, iou, &proposals, targets, ctx);
        terms.extend(parts.roi_heads.losses(&levels, regions, targets)?);
        Ok(Losses { terms, logits: None })
    }

    fn predict(&self, features: &Features, images: &[ImageMeta]) -> Result<Vec<Detections>> {
        let look = self.look(features, images)?;
        let chosen: Vec<Candidates> =
            look.candidates.iter().map(|c| c.suppress(&self.config.detections)).collect();
        let masks = self.masks(&look, &chosen)?;
        let one = |((chosen, masks), meta): ((Candidates, _), &ImageMeta)| Detections {
            boxes: chosen.boxes,
            scores: chosen.scores,
            classes: chosen.classes,
            masks,
            meta: meta.clone(),
        };
        Ok(chosen.into_iter().zip(masks).zip(images).map(one).collect())
    }
}

/// The map that the pyramid is built on.
fn the_map(features: &Features, images: usize) -> Result<&Tensor> {
    match features.maps.as_slice() {
        [map] if map.dim(0)? == images => Ok(map),
        [map] => bail!("`mask_rcnn` got maps of {} images for {images} images", map.dim(0)?),
        maps => bail!("`mask_rcnn` needs one map, got {}", maps.len()),
    }
}

fn check_classes(targets: &[Instances], classes: usize) -> Result<()> {
    let all = targets.iter().flat_map(|objects| &objects.classes);
    match all.into_iter().find(|&&class| class as usize >= classes) {
        Some(class) => bail!("an object has class {class}, the model has {classes} classes"),
        None => Ok(()),
    }
}
