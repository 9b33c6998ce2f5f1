//! The kinds `conv_box_head`, `norm_mask_head`, `cascade_heads` and `cascade_losses`: what `make_detection.py` writes.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use rescatter::data::Instances;
use rescatter::params::ParamStore;
use rescatter_heads::mask_rcnn::box_head::BoxHead;
use rescatter_heads::mask_rcnn::config::{
    BoxHeadConfig, CascadeConfig, DetectionConfig, MaskHeadConfig, MaskRcnnConfig, Norm,
    Suppression,
};
use rescatter_heads::mask_rcnn::mask_head::MaskHead;
use rescatter_heads::mask_rcnn::proposals::ProposalSet;
use rescatter_heads::mask_rcnn::regions::Regions;
use rescatter_heads::mask_rcnn::roi_heads::RoiHeads;

use super::boxes::{indices, tensor};
use super::regions::{pooler, rois};
use super::{Fixture, Outputs};

fn box_head(fixture: &Fixture) -> Result<BoxHeadConfig> {
    Ok(BoxHeadConfig {
        convs: fixture.hyper("convs")?,
        conv_dim: fixture.hyper("conv_dim")?,
        norm: Norm::Layer,
        fcs: fixture.hyper("fcs")?,
        fc_dim: fixture.hyper("fc_dim")?,
        class_agnostic: fixture.hyper("class_agnostic")?,
        beta: fixture.hyper("box_beta").unwrap_or(0.0),
        ..BoxHeadConfig::default()
    })
}

/// The gradients of `loss` that the file expects: of `inputs` by their names, and of the parameters.
fn gradients(
    fixture: &Fixture,
    loss: &Tensor,
    inputs: &[(String, Var)],
    store: &ParamStore,
    outputs: &mut Outputs,
) -> Result<()> {
    let grads = loss.backward()?;
    for (name, var) in inputs {
        let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        outputs.insert(format!("grad.input.{name}"), grad);
    }
    fixture.collect_grads(store, &grads, outputs)
}

/// `conv_box_head`: scores and deltas of pooled regions.
pub(super) fn conv_box_head(fixture: &Fixture) -> Result<Option<Outputs>> {
    let store = fixture.store();
    let (config, classes) = (box_head(fixture)?, fixture.hyper::<usize>("num_classes")?);
    let boxes = if config.class_agnostic { 1 } else { classes };
    let sizes = (fixture.hyper("channels")?, classes - 1, boxes);
    let scopes = (store.root().pp("box_head"), store.root().pp("box_predictor"));
    let head = BoxHead::new(&config, sizes, (&scopes.0, &scopes.1))?;
    fixture.load_into(&store)?;
    let pooled = Var::from_tensor(&fixture.input("pooled")?)?;
    let (logits, deltas) = head.forward(&pooled)?;
    let loss = ((&logits * fixture.input("grad_out.logits")?)?.sum_all()?
        + (&deltas * fixture.input("grad_out.deltas")?)?.sum_all()?)?;
    let mut outputs =
        Outputs::from([("output.logits".into(), logits), ("output.deltas".into(), deltas)]);
    gradients(fixture, &loss, &[("pooled".into(), pooled)], &store, &mut outputs)?;
    Ok(Some(outputs))
}

/// `norm_mask_head`: mask logits of all classes, and those of each region's own class with their gradients.
pub(super) fn norm_mask_head(fixture: &Fixture) -> Result<Option<Outputs>> {
    let store = fixture.store();
    let config = MaskHeadConfig {
        convs: fixture.hyper("convs")?,
        dim: fixture.hyper("dim")?,
        norm: Norm::Layer,
        ..MaskHeadConfig::default()
    };
    let sizes = (fixture.hyper("channels")?, fixture.hyper::<usize>("num_classes")? - 1);
    let head = MaskHead::new(&config, sizes, &store.root())?;
    fixture.load_into(&store)?;
    let pooled = Var::from_tensor(&fixture.input("pooled")?)?;
    let labels: Vec<i64> = fixture.values("labels")?;
    let labels: Vec<u32> = labels.into_iter().map(|label| label as u32).collect();
    let own = head.forward_classes(&pooled, &labels)?;
    let loss = (&own * fixture.input("grad_out.own")?)?.sum_all()?;
    let mut outputs = Outputs::from([
        ("output.logits".into(), head.forward(&pooled)?),
        ("output.own".into(), own),
    ]);
    gradients(fixture, &loss, &[("pooled".into(), pooled)], &store, &mut outputs)?;
    Ok(Some(outputs))
}

/// The box heads of a cascade with the file's weights.
fn cascade(fixture: &Fixture) -> Result<(RoiHeads, MaskRcnnConfig, ParamStore)> {
    let config = MaskRcnnConfig {
        channels: fixture.hyper("channels")?,
        box_head: box_head(fixture)?,
        mask_head: None,
        cascade: Some(CascadeConfig {
            ious: fixture.hyper("ious")?,
            weights: fixture.hyper("weights")?,
        }),
        detections: DetectionConfig {
            score_threshold: fixture.hyper("score_threshold")?,
            suppression: Suppression::Nms(fixture.hyper("box_nms")?),
            per_image: fixture.hyper("detections_per_image")?,
        },
        ..MaskRcnnConfig::default()
    };
    config.check()?;
    let store = fixture.store();
    let strides: Vec<f32> = fixture.hyper("strides")?;
    let classes = fixture.hyper::<usize>("num_classes")? - 1;
    let mut heads = RoiHeads::new(&config, classes, &strides, &store.root().pp("roi_heads"))?;
    heads.box_pooler = pooler(fixture, heads.box_pooler.size, fixture.hyper("sampling_ratio")?)?;
    fixture.load_into(&store)?;
    Ok((heads, config, store))
}

/// `cascade_heads`: detections of given proposals.
pub(super) fn heads(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (heads, config, _) = cascade(fixture)?;
    let levels = fixture.numbered("feature");
    let batch = levels.first().context("the file has no features")?.dim(0)?;
    let proposals = (0..batch).map(|b| {
        let boxes = fixture.boxes(&format!("proposals.{b}"))?;
        Ok(ProposalSet { logits: vec![0.0; boxes.len()], boxes })
    });
    let proposals = proposals.collect::<Result<Vec<_>>>()?;
    let sizes = vec![fixture.hyper("image")?; batch];
    let mut outputs = Outputs::new();
    for (b, found) in heads.candidates(&levels, &proposals, &sizes)?.iter().enumerate() {
        let found = found.suppress(&config.detections);
        let labels = found.classes.iter().map(|&class| class as usize + 1);
        outputs.extend([
            (format!("output.det_boxes.{b}"), tensor(&found.boxes)?),
            (format!("output.det_scores.{b}"), Tensor::new(found.scores.as_slice(), &Device::Cpu)?),
            (format!("output.det_labels.{b}"), indices(labels)?),
        ]);
    }
    Ok(Some(outputs))
}

/// `cascade_losses`: the terms of every stage and all gradients.
pub(super) fn losses(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (heads, _, store) = cascade(fixture)?;
    let vars = fixture.numbered("feature");
    let vars = vars.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let levels: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let objects = (0..levels[0].dim(0)?).map(|b| {
        let labels: Vec<i64> = fixture.values(&format!("gt_labels.{b}"))?;
        Ok(Instances {
            size: fixture.hyper("image")?,
            boxes: fixture.boxes(&format!("gt_boxes.{b}"))?,
            classes: labels.into_iter().map(|label| label as u32 - 1).collect(),
            ..Instances::default()
        })
    });
    let objects = objects.collect::<Result<Vec<_>>>()?;
    let labels: Vec<i64> = fixture.values("roi_label")?;
    let matched: Vec<i64> = fixture.values("roi_matched")?;
    let regions = Regions {
        rois: rois(&fixture.values::<f32>("rois")?),
        labels: labels.into_iter().map(|label| label as u32).collect(),
        matched: matched.into_iter().map(|i| i as usize).collect(),
    };
    let mut outputs = Outputs::new();
    let mut loss = Tensor::zeros((), DType::F32, fixture.device())?;
    for term in heads.losses(&levels, regions, &objects)? {
        let name = match term.name.rsplit_once('.') {
            Some(("roi.class", stage)) => format!("output.loss_classifier.{stage}"),
            Some(("roi.box", stage)) => format!("output.loss_box_reg.{stage}"),
            _ => bail!("unknown term `{}`", term.name),
        };
        let mean = (term.sum / term.count)?;
        loss = (loss + &mean)?;
        outputs.insert(name, mean);
    }
    outputs.insert("output.loss".into(), loss.clone());
    let inputs: Vec<(String, Var)> =
        vars.into_iter().enumerate().map(|(l, var)| (format!("feature.{l}"), var)).collect();
    gradients(fixture, &loss, &inputs, &store, &mut outputs)?;
    Ok(Some(outputs))
}
