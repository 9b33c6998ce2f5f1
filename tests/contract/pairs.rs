//! Every head with every way to dispatch and every way to tune: each pair of choices occurs in some model.
//!
//! A new axis is one more list in `AXES`; a new choice is one more line in its list.

use super::*;

/// The section `dispatch`. The rate is one that these few tokens cannot meet exactly, so that its loss has a gradient.
const DISPATCH: &[&str] = &[
    "{ variant: none }",
    "{ variant: mlp, target_rate: 0.3 }",
    "{ variant: attention, target_rate: 0.3, tau_schedule: { to: 0.1 } }",
    "{ variant: attention_mlp, target_rate: 0.3, inference: { top_k: 0.4 } }",
    "{ variant: layer, target_rate: 0.3 }",
    "{ variant: layer, target_rate: 0.3, select: sample }",
];

/// The section `tuning`.
const TUNING: &[&str] = &[
    "{}",
    "{ backbone: full }",
    "{ backbone: bitfit }",
    "{ backbone: { partial: 1 } }",
    "{ adapter: { bottleneck: 8, scale: 1.0, dropout: 0.1 } }",
    "{ adapter: { bottleneck: 4, scale: 1.0, placement: sequential } }",
    "{ adapter: { bottleneck: 4, scale: 1.0, experts: 3 } }",
    "{ lora: { rank: 2, alpha: 4.0 } }",
    "{ lora: { rank: 2, targets: [k, o, fc1, fc2] }, ia3: {}, backbone: bitfit }",
    "{ rlrr: {} }",
    "{ rlrr: { init: zero } }",
    "{ ssf: {}, adapter: { bottleneck: 4 } }",
    "{ ia3: {} }",
    "{ vpt: { tokens: 2 } }",
    "{ vpt: { tokens: 2, deep: true }, lora: { rank: 2 } }",
    "{ memory: { tokens: 2, before_norm: false } }",
];

/// Task and section `head`.
const HEADS: &[(&str, &str)] = &[
    ("segmentation", "{ upernet: { taps: [0, 0, 1, 1], channels: 16, aux: { channels: 8 } } }"),
    ("segmentation", "{ linear: { taps: [0, 1] } }"),
    ("classification", "{ classifier: { pool: cls } }"),
    ("classification", "{ classifier: { pool: mean } }"),
    (
        "detection",
        "{ mask_rcnn: { channels: 16, anchors: { sizes: [6, 10, 14, 20, 28] }, \
         rpn: { sampled: 64, pre_nms: { train: 60, test: 60 }, post_nms: { train: 40, test: 40 } }, \
         roi: { sampled: 32, canonical_size: 16.0 }, box_head: { convs: 0, fcs: 1, fc_dim: 16 }, mask_head: { convs: 1, dim: 8 } } }",
    ),
];

/// How many choices each list has.
const AXES: [usize; 3] = [DISPATCH.len(), TUNING.len(), HEADS.len()];

/// Rows of choices, one per axis, in which every two choices of different axes meet.
fn pairwise(axes: &[usize]) -> Vec<Vec<usize>> {
    type Choice = (usize, usize);
    let choices: Vec<Choice> =
        (0..axes.len()).flat_map(|axis| (0..axes[axis]).map(move |n| (axis, n))).collect();
    let pairs = |a: &Choice| choices.iter().filter(|b| a.0 < b.0).map(|b| (*a, *b)).collect();
    let mut missing: Vec<(Choice, Choice)> =
        choices.iter().flat_map(|a| -> Vec<_> { pairs(a) }).collect();
    let mut rows = Vec::new();
    while let Some(&(a, b)) = missing.first() {
        let mut row = vec![a, b];
        for axis in (0..axes.len()).filter(|&axis| axis != a.0 && axis != b.0) {
            // The choice that meets most of what it has not met.
            let news = |n: &usize| {
                let meets = |c: &Choice| {
                    missing.contains(&(*c, (axis, *n))) || missing.contains(&((axis, *n), *c))
                };
                row.iter().filter(|c| meets(c)).count()
            };
            row.push((axis, (0..axes[axis]).max_by_key(news).unwrap()));
        }
        missing.retain(|(a, b)| !(row.contains(a) && row.contains(b)));
        row.sort_unstable();
        rows.push(row.into_iter().map(|(_, n)| n).collect());
    }
    rows
}

#[test]
fn every_two_choices_meet() {
    let rows = pairwise(&[3, 4, 2, 3]);
    for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let met: std::collections::BTreeSet<_> = rows.iter().map(|row| (row[a], row[b])).collect();
        assert_eq!(met.len(), [3, 4, 2, 3][a] * [3, 4, 2, 3][b]);
    }
    assert!(rows.len() < 3 * 4 * 2, "{} rows", rows.len());
}

#[test]
fn every_head_works_with_every_dispatch_and_tuning() {
    for row in pairwise(&AXES) {
        let (dispatch, tuning, (task, head)) = (DISPATCH[row[0]], TUNING[row[1]], HEADS[row[2]]);
        if tuning.contains("memory")
            && !["variant: none", "variant: mlp"].iter().any(|v| dispatch.contains(v))
        {
            continue; // Refused: memory is read by all tokens.
        }
        let what = format!("dispatch {dispatch}, tuning {tuning}, head {head}");
        let config = configured(task, dispatch, tuning, &format!("head: {head}"));
        let build = || TaskModel::new(&config, CLASSES, &Device::Cpu).unwrap();
        match (build(), build()) {
            (TaskModel::Segmentation(a), TaskModel::Segmentation(b)) => {
                is_trained_alone([a, b], label_maps(), &what);
            }
            (TaskModel::Detection(a), TaskModel::Detection(b)) => {
                is_trained_alone([a, b], instances(), &what);
            }
            (TaskModel::Classification(a), TaskModel::Classification(b)) => {
                is_trained_alone([a, b], vec![0.into(), 2.into()], &what);
            }
            _ => panic!("two models of one config have two tasks"),
        }
    }
}

/// One step moves everything that is trained and nothing else, whether blocks are recomputed or not; what is saved is all that differs; inference with folded
/// weights agrees with the training form.
fn is_trained_alone<H: Head>(models: [Model<H>; 2], targets: Vec<H::Target>, what: &str) {
    let batch = batch(targets);
    let [model, other] = models;
    randomise(&model, 1).unwrap();
    randomise(&other, 2).unwrap();
    open_to_all(&model, what);
    let frozen = values(&model, Role::Frozen);
    let optimizer = Optimizer::new(&OptimizerConfig::default(), &model.params).unwrap();
    let found = step(&model, &optimizer, &batch, 0);
    for (parameter, gradient) in optimizer.parameters().iter().zip(&found.gradients) {
        // A head that reads the maps alone leaves what follows the last tap without gradient.
        if unread(&parameter.name, what) {
            continue;
        }
        let size = gradient
            .as_ref()
            .map(|g| g.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
        let reached = size.is_some_and(|size| size > 0.0);
        assert!(reached, "no gradient reaches `{}`: {what}", parameter.name);
    }
    let model = Model { backbone: model.backbone.with_checkpoints(Some(2)), ..model };
    let again = step(&model, &optimizer, &batch, 0);
    for ((want, got), parameter) in
        found.gradients.iter().zip(&again.gradients).zip(optimizer.parameters())
    {
        let values = |g: &Tensor| g.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let [want, got] = [want, got].map(|g| g.as_ref().map(values).unwrap_or_default());
        let largest = want.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
        let far = want.iter().zip(&got).any(|(a, b)| (a - b).abs() > 1e-5 * largest);
        let name = &parameter.name;
        assert!(!far && want.len() == got.len(), "recomputing changes `{name}`: {what}");
    }
    let mut optimizer = optimizer;
    optimizer.step(&found.gradients, 1e-2, 1.0).unwrap();
    assert_eq!(frozen, values(&model, Role::Frozen), "{what}");

    let features = |model: &Model<H>, pass: &Pass| -> Vec<f32> {
        let features = model.backbone.forward(&batch.images, pass).unwrap();
        let all = features.maps.iter().chain([&features.tokens]);
        all.flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    };
    let (gathered, masked) = (features(&model, &Pass::Infer), features(&model, &Pass::InferMasked));
    let largest = masked.iter().fold(0f32, |most, v| most.max(v.abs()));
    let difference = gathered.iter().zip(&masked).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= 1e-5 * largest, "{difference:e} of {largest:e}: {what}");

    // `other` has run before, so weights that it folded then must not stay.
    features(&other, &Pass::Infer);
    for role in [Role::Trainable, Role::Buffer] {
        for (name, var) in model.params.with_role(role) {
            other.params.set(&name, &var.as_detached_tensor()).unwrap();
        }
    }
    assert_eq!(features(&model, &Pass::Infer), features(&other, &Pass::Infer), "{what}");
}

/// Whether no path leads from the parameter to the loss: detectors and segmentation heads read no final norm.
fn unread(name: &str, what: &str) -> bool {
    let dense = !what.contains("classifier");
    dense && (name.starts_with("backbone.norm.") || name.starts_with("backbone.ssf_norm."))
}

/// Lets every image pass every block where images are dispatched as a whole: a block that none passes has no gradient.
fn open_to_all<H>(model: &Model<H>, what: &str) {
    if !what.contains("select: sample") {
        return;
    }
    for (name, var) in model.params.with_role(Role::Trainable) {
        if name.ends_with("token_select.mlp_head.bias") {
            let open = Tensor::full(40f32, var.shape(), &Device::Cpu).unwrap();
            model.params.set(&name, &open).unwrap();
        }
    }
}

fn values<H>(model: &Model<H>, role: Role) -> Vec<(String, Vec<f32>)> {
    let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1().unwrap();
    model.params.with_role(role).into_iter().map(|(name, var)| (name, values(&var))).collect()
}
