//! Image classification: one linear layer on the class token or on the mean of the patch tokens.

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext, Term};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{Init, Scope};
use serde::{Deserialize, Serialize};

/// The section `head.classifier`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifierConfig {
    /// Which token stands for the image.
    pub pool: Pool,
}

/// Which token stands for the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token after the final norm.
    #[default]
    Cls,
    /// The mean of the patch tokens after the final norm.
    Mean,
}

/// One linear layer with timm's name, `head`.
#[derive(Debug)]
pub struct ClassifierHead {
    pool: Pool,
    weight: Tensor,
    bias: Tensor,
}

impl ClassifierHead {
    /// For `classes` classes.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn new(
        config: &ClassifierConfig,
        spec: &FeatureSpec,
        classes: usize,
        root: &Scope,
    ) -> Result<Self> {
        let scope = root.pp("head");
        let weight =
            scope.param("weight", (classes, spec.channels), Init::TruncatedNormal(0.02))?;
        Ok(Self {
            pool: config.pool,
            weight,
            bias: scope.param("bias", classes, Init::Const(0.0))?,
        })
    }

    /// Logits `[B, K]`.
    ///
    /// # Errors
    /// If the class token is wanted and there is none, or the widths differ.
    pub fn forward(&self, features: &Features) -> Result<Tensor> {
        let pooled = match self.pool {
            Pool::Cls if features.prefix == 0 => {
                bail!("`pool: cls` needs a class token, the backbone has none")
            }
            Pool::Cls => features.tokens.narrow(1, 0, 1)?.squeeze(1)?,
            Pool::Mean => {
                let patches = features.tokens.dim(1)? - features.prefix;
                features.tokens.narrow(1, features.prefix, patches)?.mean(1)?
            }
        };
        ops::linear(&pooled, &self.weight, Some(&self.bias))
    }
}

impl Head for ClassifierHead {
    type Target = u32;
    /// Logits, one per class.
    type Prediction = Vec<f32>;

    fn losses(&self, features: &Features, targets: &[u32], _ctx: &StepContext) -> Result<Losses> {
        let logits = self.forward(features)?;
        let labels = Tensor::new(targets, logits.device())?;
        let options = CrossEntropy { ignore_index: u32::MAX, class_weights: None };
        let (sum, count) = ops::cross_entropy(&logits, &labels, &options)?;
        Ok(Losses {
            terms: vec![Term { name: "ce", weight: 1.0, sum, count }],
            logits: Some(logits),
        })
    }

    fn predict(&self, features: &Features, _images: &[ImageMeta]) -> Result<Vec<Vec<f32>>> {
        self.forward(features)?.detach().to_vec2()
    }
}
