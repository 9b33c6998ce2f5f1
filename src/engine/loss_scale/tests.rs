#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};

use super::*;
use crate::backbone::{Features, Reads};
use crate::config::{Config, load};
use crate::data::Batch;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::{Evaluation, Outcome, Run, Start, Trainer};
use crate::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext, Term};
use crate::model::Model;
use crate::ops::gradcheck::normal;
use crate::ops::{self, CrossEntropy};
use crate::params::{Init, Scope};

/// Three classes from the mean token, with a loss times `factor`.
struct MeanToken {
    weight: Tensor,
    factor: f64,
}

impl Head for MeanToken {
    type Target = u32;
    type Prediction = u32;

    fn losses(
        &self,
        features: &Features,
        targets: &[u32],
        _: &StepContext,
    ) -> candle_core::Result<Losses> {
        let logits = ops::linear(&features.tokens.mean(1)?, &self.weight, None)?;
        let labels = Tensor::new(targets, logits.device())?;
        let (sum, count) = ops::cross_entropy(&logits, &labels, &CrossEntropy::default())?;
        let term = Term { name: "ce", weight: self.factor, sum, count };
        Ok(Losses { terms: vec![term], logits: None })
    }

    fn predict(&self, _: &Features, images: &[ImageMeta]) -> candle_core::Result<Vec<u32>> {
        Ok(vec![0; images.len()])
    }
}

/// Every step sees the same images, at the same rate and without noise.
fn config(optimizer: &str, overrides: &[String]) -> Config<()> {
    let split = "ade20k: { images: a, labels: b, classes: [x, y, z] }, transforms: [normalize: {}]";
    let text = format!(
        "task: segmentation
backbone: {{ embed_dim: 24, depth: 2, num_heads: 3, patch_size: 4, pos_embed_grid: [4, 4] }}
dispatch: {{ variant: none }}
tuning: {{ adapter: {{ bottleneck: 4, scale: 0.5, dropout: 0.0 }} }}
head: null
data: {{ train: {{ {split} }}, val: {{ {split} }} }}
optimizer: {optimizer}
schedule: {{ poly: {{ power: 0.0 }} }}
train: {{ iterations: 20, batch_size: 2, accumulate: 2, clip_norm: 1.0, ema: 0.5 }}"
    );
    load::parse(&text, Path::new("test.yaml"), overrides).unwrap()
}

fn model(config: &Config<()>, factor: f64) -> Model<MeanToken> {
    let head = |spec: FeatureSpec, root: &Scope| {
        let weight = root.param("head.weight", (3, spec.channels), Init::Normal(1.0))?;
        Ok(MeanToken { weight, factor })
    };
    Model::new(config, &Reads::all(&[]), &Device::Cpu, head).unwrap()
}

fn batch(number: u64) -> Batch<u32> {
    let images = normal(&[2, 3, 16, 16], number % 2).unwrap();
    let size = (16, 16);
    let meta = ImageMeta { name: "a".into(), original: size, input: size, flipped: false };
    Batch {
        images: images.to_dtype(candle_core::DType::F32).unwrap(),
        targets: vec![0, 1 + (number % 2) as u32],
        metas: vec![meta; 2],
        samples: vec![2 * number, 2 * number + 1],
    }
}

/// Trains in `folder`, on from where a training there was stopped, until the end or for `steps` steps. Products are rounded as
/// on a GPU.
fn train(
    config: &Config<()>,
    factor: f64,
    folder: &Path,
    steps: Option<u64>,
) -> crate::Result<Outcome> {
    let model = model(config, factor);
    let run = Run::claim(folder, config, Start::Resume)?;
    let mut trainer = Trainer::new(&model, run, config, vec!["x".into()])?;
    trainer.resume(config)?;
    let (stop, first) = (AtomicBool::new(false), trainer.first_sample() / 2);
    let batches = (first..).map(|number| {
        stop.store(Some((number - first) / 2 + 1) == steps, Ordering::Relaxed);
        Ok(batch(number))
    });
    let evaluate = || Ok(Evaluation::default());
    let all = || ops::composed(|| trainer.run(batches, &stop, evaluate));
    ops::in_precision(config.train.precision, all)
}

fn overrides(precision: &str, iterations: u64) -> [String; 2] {
    [format!("train.precision={precision}"), format!("train.iterations={iterations}")]
}

/// What a training changed: tensors by name, less what they were before it.
fn moved(checkpoint: &Checkpoint, config: &Config<()>) -> BTreeMap<String, Vec<f32>> {
    let before: BTreeMap<_, _> = model(config, 1.0).params.all().into_iter().collect();
    let difference = |(name, now): (&String, &Tensor)| {
        let moved = match before.get(name.trim_start_matches("ema.")) {
            Some(param) => (now - param.var.as_detached_tensor()).unwrap(),
            None => now.clone(),
        };
        (name.clone(), moved.flatten_all().unwrap().to_vec1().unwrap())
    };
    checkpoint.tensors().iter().map(difference).collect()
}

const OPTIMIZERS: [&str; 2] =
    ["{ adamw: { lr: 1e-3, weight_decay: 0.0 } }", "{ sgd: { lr: 0.05, weight_decay: 0.0 } }"];

#[test]
fn steps_that_overflow_are_left_out_and_the_others_are_those_in_f32() {
    for optimizer in OPTIMIZERS {
        let folder = tempfile::tempdir().unwrap();
        let run = |precision: &str, steps: u64| {
            let config = config(optimizer, &overrides(precision, steps));
            let folder = folder.path().join(precision);
            let outcome = train(&config, 1000.0, &folder, None).unwrap();
            assert!(matches!(outcome, Outcome::Finished(_)));
            let found = Checkpoint::read(&folder.join("last.safetensors")).unwrap();
            (moved(&found, &config), found.meta.loss_scale)
        };
        let (narrow, scale) = run("f16", 20);
        let scale = scale.unwrap();
        assert!((5..15).contains(&scale.skipped), "{scale:?}");
        assert_eq!(scale.factor, 65536.0 / 2f64.powi(scale.skipped as i32));
        assert_eq!(scale.good, 20 - scale.skipped);
        let (exact, none) = run("f32", 20 - scale.skipped);
        assert_eq!(none, None);
        for group in ["optimizer.", "ema.", ""] {
            let of = |name: &&String| match group {
                "" => !name.starts_with("optimizer.") && !name.starts_with("ema."),
                _ => name.starts_with(group),
            };
            let (mut error, mut whole) = (0f64, 0f64);
            for name in exact.keys().filter(of) {
                for (a, b) in narrow[name].iter().zip(&exact[name]) {
                    error += f64::from(a - b).powi(2);
                    whole += f64::from(*b).powi(2);
                }
            }
            let error = (error / whole).sqrt();
            assert!(error < 0.02 && whole > 0.0, "{optimizer}, `{group}`: {error}, {whole}");
        }
    }
}

#[test]
fn a_resumed_training_has_the_same_scale_and_changes_no_bit() {
    for optimizer in OPTIMIZERS {
        let config = config(optimizer, &overrides("f16", 20));
        let folder = tempfile::tempdir().unwrap();
        let end = |parts: &[Option<u64>], name: &str| {
            let folder = folder.path().join(name);
            for steps in parts {
                let outcome = train(&config, 1000.0, &folder, *steps).unwrap();
                assert_eq!(steps.is_none(), matches!(outcome, Outcome::Finished(_)));
            }
            let found = Checkpoint::read(&folder.join("last.safetensors")).unwrap();
            (moved(&found, &config), found.meta.loss_scale)
        };
        // The first part ends before a step was good, the second one behind some.
        assert_eq!(end(&[None], "straight"), end(&[Some(4), Some(11), None], "parts"));
    }
}

#[test]
fn what_no_scale_cures_ends_the_training() {
    let config = config(OPTIMIZERS[1], &overrides("f16", 20));
    let folder = tempfile::tempdir().unwrap();
    let fault = |factor| train(&config, factor, folder.path(), None).unwrap_err();
    let error = fault(1e9);
    let message = error.to_string();
    for text in ["step 17: the gradient of `", "is not finite, whatever the loss scale"] {
        assert!(message.contains(text), "{message}");
    }
    assert!(error.hint().is_some_and(|hint| hint.contains("bf16")), "{error:?}");
    // A loss is not scaled.
    let message = fault(f64::INFINITY).to_string();
    assert!(message.contains("step 1: the total loss is inf"), "{message}");
}

#[test]
fn good_steps_in_a_row_double_the_scale() {
    let mut scale = LossScale::default();
    (1..PATIENCE).for_each(|_| scale.grow());
    assert!(scale.factor() == 65536.0 && scale.shrink());
    (1..PATIENCE).for_each(|_| scale.grow());
    assert_eq!((scale.factor(), scale.skipped()), (32768.0, 1));
    scale.grow();
    assert_eq!(scale, LossScale { factor: 65536.0, good: 0, skipped: 1 });
    let text = serde_json::to_string(&scale).unwrap();
    assert_eq!(serde_json::from_str::<LossScale>(&text).unwrap(), scale);
    while scale.shrink() {}
    assert_eq!((scale.factor(), scale.skipped()), (1.0, 17));
}
