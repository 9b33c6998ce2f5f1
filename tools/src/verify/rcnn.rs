//! The kinds `mask_rcnn_heads` and `mask_rcnn_losses`.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use ndarray::Array2;
use rescatter::boxes::BoxCoder;
use rescatter::data::{InstanceMask, Instances};
use rescatter::ops::Roi;
use rescatter::params::ParamStore;
use rescatter_heads::mask_rcnn::anchors::anchors;
use rescatter_heads::mask_rcnn::config::{
    AnchorConfig, BoxHeadConfig, DetectionConfig, MaskHeadConfig, MaskRcnnConfig, Norm, Suppression,
};
use rescatter_heads::mask_rcnn::mask_head::{MASK_SIZE, mask_targets};
use rescatter_heads::mask_rcnn::proposals::{ProposalOptions, ProposalSet};
use rescatter_heads::mask_rcnn::regions::Regions;
use rescatter_heads::mask_rcnn::roi_heads::RoiHeads;
use rescatter_heads::mask_rcnn::rpn::{self, AnchorTargets, RpnHead};

use super::boxes::{indices, tensor};
use super::regions::{pasted, pooler, rois};
use super::{Fixture, Outputs};

/// Both stages with the file's weights.
struct Net {
    rpn: RpnHead,
    roi_heads: RoiHeads,
    config: MaskRcnnConfig,
    strides: Vec<f32>,
    image: (usize, usize),
    store: ParamStore,
}

impl Net {
    fn new(fixture: &Fixture) -> Result<Self> {
        let config = config(fixture)?;
        let strides: Vec<f32> = fixture.hyper("strides")?;
        let store = fixture.store();
        let ratios = config.anchors.ratios.len();
        let scope = store.root().pp("rpn").pp("head");
        let rpn = RpnHead::new(config.channels, ratios, 1, &scope)?;
        // The files count the background as a class.
        let classes = fixture.hyper::<usize>("num_classes")? - 1;
        let scope = store.root().pp("roi_heads");
        let mut roi_heads = RoiHeads::new(&config, classes, &strides, &scope)?;
        let ratio = |key: &str| fixture.hyper::<usize>(key);
        roi_heads.box_pooler =
            pooler(fixture, roi_heads.box_pooler.size, ratio("box_sampling_ratio")?)?;
        roi_heads.mask_pooler =
            pooler(fixture, roi_heads.mask_pooler.size, ratio("mask_sampling_ratio")?)?;
        fixture.load_into(&store)?;
        Ok(Self { rpn, roi_heads, config, strides, image: fixture.hyper("image")?, store })
    }

    fn anchors(&self, levels: &[Tensor]) -> Result<Vec<Vec<[f32; 4]>>> {
        let shape = |level: &Tensor| level.dims4().map(|(_, _, height, width)| (height, width));
        let shapes = levels.iter().map(shape).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(anchors(&self.config.anchors, &self.strides, &shapes))
    }
}

fn config(fixture: &Fixture) -> Result<MaskRcnnConfig> {
    let beta = |key: &str| fixture.hyper::<f64>(key).unwrap_or(0.0);
    Ok(MaskRcnnConfig {
        channels: fixture.hyper("channels")?,
        anchors: AnchorConfig {
            sizes: fixture.hyper("anchor_sizes")?,
            ratios: fixture.hyper("ratios")?,
        },
        box_head: BoxHeadConfig {
            convs: 0,
            fcs: 2,
            fc_dim: fixture.hyper("fc_dim")?,
            norm: Norm::None,
            weights: fixture.hyper("box_weights")?,
            beta: beta("box_beta"),
            ..BoxHeadConfig::default()
        },
        mask_head: Some(MaskHeadConfig {
            dim: fixture.hyper("mask_dim")?,
            norm: Norm::None,
            ..MaskHeadConfig::default()
        }),
        detections: DetectionConfig {
            score_threshold: fixture.hyper("score_threshold")?,
            suppression: Suppression::Nms(fixture.hyper("box_nms")?),
            per_image: fixture.hyper("detections_per_image")?,
        },
        ..MaskRcnnConfig::default()
    })
}

/// `mask_rcnn_heads`: everything from the levels to pasted masks.
pub(super) fn heads(fixture: &Fixture) -> Result<Option<Outputs>> {
    let net = Net::new(fixture)?;
    let levels = fixture.numbered("feature");
    let batch = levels.first().context("the file has no features")?.dim(0)?;
    let output = net.rpn.forward(&levels)?;
    let mut outputs = Outputs::new();
    for (l, (logits, deltas)) in output.logits.iter().zip(&output.deltas).enumerate() {
        outputs.insert(format!("output.rpn_logits.{l}"), logits.clone());
        outputs.insert(format!("output.rpn_deltas.{l}"), deltas.clone());
    }
    let given = rois(&fixture.values::<f32>("mask_rois")?);
    outputs.insert("output.mask_logits".into(), net.roi_heads.mask_branch(&levels, &given)?);
    let options = ProposalOptions {
        pre_nms: fixture.hyper("pre_nms_topk")?,
        post_nms: fixture.hyper("post_nms_topk")?,
        nms: fixture.hyper("rpn_nms")?,
        min_size: fixture.hyper("min_size")?,
    };
    let sizes = vec![net.image; batch];
    let proposals = output.proposals(&net.anchors(&levels)?, &sizes, &options)?;
    let candidates = net.roi_heads.candidates(&levels, &proposals, &sizes)?;
    let chosen: Vec<_> = candidates.iter().map(|c| c.suppress(&net.config.detections)).collect();
    let masks = net.roi_heads.masks(&levels, &chosen)?;
    let top: usize = fixture.hyper("paste_top")?;
    for (b, (ProposalSet { boxes, logits }, found)) in proposals.iter().zip(&chosen).enumerate() {
        let rois: Vec<Roi> = boxes.iter().map(|&bounds| Roi { image: b, bounds }).collect();
        let (class_logits, deltas) = net.roi_heads.box_branch(0, &levels, &rois)?;
        let probs = &masks[b][..top.min(masks[b].len())];
        let (_, pasted) = pasted(probs, &found.boxes, net.image)?;
        let flat: Vec<f32> = probs.iter().flatten().copied().collect();
        let shape = (probs.len(), MASK_SIZE, MASK_SIZE);
        outputs.extend([
            (format!("output.proposals.{b}"), tensor(boxes)?),
            (format!("output.proposal_logits.{b}"), Tensor::new(logits.as_slice(), &Device::Cpu)?),
            (format!("output.box_logits.{b}"), class_logits),
            (format!("output.box_deltas.{b}"), deltas),
            (format!("output.det_boxes.{b}"), tensor(&found.boxes)?),
            (format!("output.det_scores.{b}"), Tensor::new(found.scores.as_slice(), &Device::Cpu)?),
            (
                format!("output.det_labels.{b}"),
                indices(found.classes.iter().map(|&class| class as usize + 1))?,
            ),
            (format!("output.det_mask_probs.{b}"), Tensor::from_vec(flat, shape, &Device::Cpu)?),
            (format!("output.det_masks.{b}"), pasted),
        ]);
    }
    Ok(Some(outputs))
}

/// The objects of every image of the file.
fn objects(fixture: &Fixture) -> Result<Vec<Instances>> {
    let mut all = Vec::new();
    for (b, masks) in fixture.numbered("gt_masks").into_iter().enumerate() {
        let (count, height, width) = masks.dims3()?;
        let mask = |i: usize| -> Result<InstanceMask> {
            let pixels = masks.get(i)?.flatten_all()?.to_vec1::<u8>()?;
            let bitmap = Array2::from_shape_vec((height, width), pixels)?;
            Ok(InstanceMask { origin: (0, 0), bitmap })
        };
        let labels: Vec<i64> = fixture.values(&format!("gt_labels.{b}"))?;
        all.push(Instances {
            size: fixture.hyper("image")?,
            boxes: fixture.boxes(&format!("gt_boxes.{b}"))?,
            classes: labels.into_iter().map(|label| label as u32 - 1).collect(),
            masks: (0..count).map(mask).collect::<Result<_>>()?,
            crowds: Vec::new(),
        });
    }
    Ok(all)
}

/// The sampled anchors of image `b`.
fn anchor_targets(
    fixture: &Fixture,
    b: usize,
    anchors: &[[f32; 4]],
    objects: &Instances,
) -> Result<AnchorTargets> {
    let labels: Vec<i64> = fixture.values(&format!("rpn_label.{b}"))?;
    let matched: Vec<i64> = fixture.values(&format!("rpn_matched.{b}"))?;
    let with = |wanted: i64| (0..labels.len()).filter(move |&i| labels[i] == wanted);
    let target =
        |i: usize| (i, BoxCoder::PLAIN.encode(anchors[i], objects.boxes[matched[i] as usize]));
    Ok(AnchorTargets {
        positives: with.clone()(1).map(target).collect(),
        negatives: with(0).collect(),
    })
}

fn deltas<'a>(positives: impl IntoIterator<Item = &'a (usize, [f32; 4])>) -> Result<Tensor> {
    tensor(&positives.into_iter().map(|(_, deltas)| *deltas).collect::<Vec<_>>())
}

/// `mask_rcnn_losses`: the five terms and all gradients, for given samples.
pub(super) fn losses(fixture: &Fixture) -> Result<Option<Outputs>> {
    let net = Net::new(fixture)?;
    let vars = fixture.numbered("feature");
    let vars = vars.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let levels: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let (objects, all) = (objects(fixture)?, net.anchors(&levels)?.concat());
    let mut outputs = Outputs::new();
    let mut sampled = Vec::new();
    for (b, objects) in objects.iter().enumerate() {
        let targets = anchor_targets(fixture, b, &all, objects)?;
        outputs.insert(format!("output.rpn_target.{b}"), deltas(&targets.positives)?);
        sampled.push(targets);
    }
    let labels: Vec<i64> = fixture.values("roi_label")?;
    let matched: Vec<i64> = fixture.values("roi_matched")?;
    let regions = Regions {
        rois: rois(&fixture.values::<f32>("rois")?),
        labels: labels.into_iter().map(|label| label as u32).collect(),
        matched: matched.into_iter().map(|i| i as usize).collect(),
    };
    let coder = BoxCoder { weights: net.config.box_head.weights };
    let target = regions.targets(coder, &objects);
    outputs.insert("output.roi_target".into(), deltas(&target.positives)?);
    outputs.insert("output.mask_target".into(), mask_target(&regions, &objects)?);
    let mut terms = rpn::losses(&net.rpn, &levels, &sampled, fixture.hyper("rpn_beta")?)?.to_vec();
    terms.extend(net.roi_heads.losses(&levels, regions, &objects)?);
    let mut loss = Tensor::zeros((), DType::F32, fixture.device())?;
    for term in terms {
        let name = match term.name {
            "rpn.objectness" => "loss_objectness",
            "rpn.box" => "loss_rpn_box",
            "roi.class" => "loss_classifier",
            "roi.box" => "loss_box_reg",
            "roi.mask" => "loss_mask",
            other => anyhow::bail!("unknown term `{other}`"),
        };
        let mean = (term.sum / term.count.max(1.0))?;
        loss = (loss + &mean)?;
        outputs.insert(format!("output.{name}"), mean);
    }
    let grads = loss.backward()?;
    outputs.insert("output.loss".into(), loss);
    for (l, var) in vars.iter().enumerate() {
        let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        outputs.insert(format!("grad.input.feature.{l}"), grad);
    }
    fixture.collect_grads(&net.store, &grads, &mut outputs)?;
    Ok(Some(outputs))
}

/// The mask targets of the foreground regions, in their order.
fn mask_target(regions: &Regions, objects: &[Instances]) -> Result<Tensor> {
    let positives = regions.positives();
    let pair = |&i: &usize| {
        let Roi { image, bounds } = regions.rois[i];
        let Instances { masks, size, .. } = &objects[image];
        (bounds, &masks[regions.matched[i]], *size)
    };
    let pairs: Vec<_> = positives.iter().map(pair).collect();
    let targets = mask_targets(&pairs, MASK_SIZE);
    let shape = (pairs.len(), MASK_SIZE, MASK_SIZE);
    Ok(Tensor::from_vec(targets, shape, &Device::Cpu)?.to_dtype(DType::U8)?)
}
