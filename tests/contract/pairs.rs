//! Every head with every way to dispatch and every way to tune: each pair of choices occurs in some model.
//!
//! A new axis is one more list in `AXES`; a new choice is one more line in its list.

use rescatter::backbone::Features;

use super::*;

/// The section `dispatch`.
const DISPATCH: &[&str] = &[
    "{ variant: none }",
    "{ variant: mlp, target_rate: 0.3 }",
    "{ variant: attention, tau_schedule: { to: 0.1 } }",
    "{ variant: attention_mlp, inference: { top_k: 0.4 } }",
    "{ variant: layer }",
    "{ variant: layer, select: sample }",
];

/// The section `tuning`.
const TUNING: &[&str] = &[
    "{}",
    "{ adapter: { bottleneck: 8, scale: 1.0, dropout: 0.1 } }",
    "{ adapter: { bottleneck: 4, scale: 1.0, experts: 3 } }",
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
        println!("{dispatch} {tuning} {head}");
        let config = configured(task, dispatch, tuning, &format!("head: {head}"));
        let build = || TaskModel::new(&config, CLASSES, &Device::Cpu).unwrap();
        let models = [build(), build()];
        match &models {
            [TaskModel::Segmentation(a), TaskModel::Segmentation(b)] => holds(a, b, label_maps()),
            [TaskModel::Detection(a), TaskModel::Detection(b)] => holds(a, b, instances()),
            [TaskModel::Classification(a), TaskModel::Classification(b)] => holds(a, b, vec![0, 2]),
            _ => panic!("two models of one config have two tasks"),
        }
    }
}

/// One step reaches all that is trained, a file brings it all back, and gathering is masking.
fn holds<H: Head>(model: &Model<H>, other: &Model<H>, targets: Vec<H::Target>) {
    let batch = batch(targets);
    randomise(model, 1).unwrap();
    randomise(other, 2).unwrap();
    gradients_reach_what_is_trained(model, &batch);
    a_round_trip_through_a_file_changes_nothing(model, other, &batch);
    let features = |pass| model.backbone.forward(&batch.images, &pass).unwrap();
    let (gathered, masked) = (features(Pass::Infer), features(Pass::InferMasked));
    let tensors = |features: Features| [features.maps, vec![features.tokens]].concat();
    for (a, b) in tensors(gathered).iter().zip(&tensors(masked)) {
        let largest = |t: &Tensor| -> Result<f32> { t.abs()?.max_all()?.to_scalar() };
        let difference = largest(&(a - b).unwrap()).unwrap();
        assert!(difference <= 1e-5 * largest(b).unwrap(), "gathered − masked: {difference:e}");
    }
}
