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

/// One linear layer: `head`, timm's name; of an added task t `heads.t`.
#[derive(Debug)]
pub struct ClassifierHead {
    source: Source,
    weight: Tensor,
    bias: Tensor,
}

/// What the linear layer sees.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The model's own tokens.
    Pooled(Pool),
    /// The class token of the added task with this number, from 1.
    Added(usize),
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
        Self::at(Source::Pooled(config.pool), spec, classes, &root.pp("head"))
    }

    /// For the `classes` classes of the added task number `task`, from 1, on its class token.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn added(task: usize, spec: &FeatureSpec, classes: usize, root: &Scope) -> Result<Self> {
        Self::at(Source::Added(task), spec, classes, &root.pp("heads").pp(task))
    }

    fn at(source: Source, spec: &FeatureSpec, classes: usize, scope: &Scope) -> Result<Self> {
        let init = Init::TruncatedNormal(0.02);
        let weight = scope.param("weight", (classes, spec.channels), init)?;
        Ok(Self { source, weight, bias: scope.param("bias", classes, Init::Const(0.0))? })
    }

    /// Logits `[B, K]`.
    ///
    /// # Errors
    /// If the class token is wanted and there is none, or the widths differ.
    pub fn forward(&self, features: &Features) -> Result<Tensor> {
        let pooled = match self.source {
            Source::Added(task) => match features.added.get(task.wrapping_sub(1)) {
                Some(token) => token.clone(),
                None => bail!("the backbone has no added task {task}"),
            },
            Source::Pooled(Pool::Cls) if features.prefix == 0 => {
                bail!("`pool: cls` needs a class token, the backbone has none")
            }
            Source::Pooled(Pool::Cls) => features.tokens.narrow(1, 0, 1)?.squeeze(1)?,
            Source::Pooled(Pool::Mean) => {
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
