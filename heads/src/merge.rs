//! Folding trained changes of weights into plain weights: the same model without the methods that changed them.

use candle_core::{DType, Device, Tensor};
use rescatter::backbone::{Features, Pass};
use rescatter::config::TuningConfig;
use rescatter::head::StepContext;
use rescatter::rng::{Purpose, Rng};
use rescatter::{Error, Result};

use crate::{Config, TaskModel, Trained};

/// Largest |difference| of the features, as a share of the largest value, up to which two models are the same.
pub const TOLERANCE: f64 = 1e-5;

/// Images on which the two models are compared.
const IMAGES: usize = 2;

/// A model with plain weights.
pub struct Merged {
    /// Its config: that of the run without the methods that are folded, and without a file of pretrained weights.
    pub config: Config,
    /// The model.
    pub model: TaskModel,
    /// Methods that were folded.
    pub folded: Vec<&'static str>,
    /// Largest |difference| of the features on random images, as a share of the largest value.
    pub difference: f64,
}

/// The model of `trained` with LoRA, RLRR, SSF and (IA)³ folded into its weights. Everything else stays as it is.
///
/// # Errors
/// If there is nothing to fold, or the features of the two models differ by more than [`TOLERANCE`].
pub fn merged(trained: &Trained) -> Result<Merged> {
    let (tuning, mut config) = (&trained.config.tuning, trained.config.clone());
    let folded: Vec<&str> = [
        ("lora", tuning.lora.is_some()),
        ("rlrr", tuning.rlrr.is_some()),
        ("ssf", tuning.ssf.is_some()),
        ("ia3", tuning.ia3.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, used)| used.then_some(name))
    .collect();
    if folded.is_empty() {
        return Err(Error::usage(
            "there is nothing to merge: `tuning` has none of lora, rlrr, ssf and ia3",
        )
        .with_hint("`rescatter weights export` writes a run as one file"));
    }
    config.tuning = TuningConfig { lora: None, rlrr: None, ssf: None, ia3: None, ..tuning.clone() };
    let (old, rebuilt) = (&trained.model, trained.rebuilt(config)?);
    let (config, model) = (rebuilt.config, rebuilt.model);
    for (name, tensor) in old.backbone().merged_weights()? {
        model.params().set(&format!("backbone.{name}"), &tensor)?;
    }
    let difference = difference(old, &model)?;
    if difference.is_nan() || difference > TOLERANCE {
        return Err(Error::usage(format!(
            "the merged model is another one: its features differ by {difference:.1e} of the largest value, more than {TOLERANCE:.0e}"
        )));
    }
    Ok(Merged { config, model, folded, difference })
}

/// Of all features on random images, every token active: the one model computes as in training, layer by layer, the other
/// as at inference.
fn difference(one: &TaskModel, other: &TaskModel) -> Result<f64> {
    let (dims, grid) = (one.backbone().dims(), one.backbone().grid());
    let shape = (IMAGES, 3, grid.0 * dims.patch, grid.1 * dims.patch);
    let mut stream = Rng::new(0).stream(Purpose::Synthetic, 0, 0);
    let values = (0..shape.0 * shape.1 * shape.2 * shape.3).map(|_| stream.normal() as f32);
    let images = Tensor::from_vec(values.collect(), shape, one.params().device())?;
    let (rng, samples) = (Rng::new(0), [0; IMAGES]);
    let ctx = StepContext::still(&rng, &samples);
    let features = |model: &TaskModel| model.backbone().forward(&images, &Pass::Complete(&ctx));
    let (one, other) = (features(one)?, features(other)?);
    let mut worst = 0f64;
    for (a, b) in tensors(&one).into_iter().zip(tensors(&other)) {
        let share = largest(&(a - b)?)? / largest(b)?.max(1e-6);
        worst = if share.is_nan() { f64::NAN } else { worst.max(share) };
    }
    Ok(worst)
}

fn tensors(features: &Features) -> Vec<&Tensor> {
    std::iter::once(&features.tokens).chain(&features.maps).chain(&features.added).collect()
}

fn largest(tensor: &Tensor) -> Result<f64> {
    let values = tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let values = values.flatten_all()?.to_vec1::<f64>()?;
    let larger = |most: f64, v: f64| if v.is_nan() || v.abs() > most { v.abs() } else { most };
    Ok(values.into_iter().fold(0.0, |most, v| if most.is_nan() { most } else { larger(most, v) }))
}
