//! Image classification: one linear layer on the class token or on the mean of the patch tokens.

use candle_core::{Result, Tensor, bail};
use rescatter::Error;
use rescatter::backbone::Features;
use rescatter::config::BackboneConfig;
use rescatter::data::ClassTarget;
use rescatter::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext, Term};
use rescatter::ops;
use rescatter::params::{Init, Scope};
use serde::{Deserialize, Serialize};

/// The section `head.classifier`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifierConfig {
    /// Which token stands for the image.
    pub pool: Pool,
    /// ε of label smoothing (Szegedy et al., arXiv 1512.00567 §7): every class gets ε / K, the own one the rest.
    pub label_smoothing: f32,
}

impl ClassifierConfig {
    /// Whether the tokens of `backbone` are those that stand for the image.
    ///
    /// # Errors
    /// If it has no class token, and one is wanted.
    pub fn check(&self, backbone: &BackboneConfig) -> rescatter::Result<()> {
        if self.pool == Pool::Cls && !backbone.cls_token {
            return Err(Error::usage(
                "`head.classifier.pool: cls` reads the class token, but `backbone.cls_token` is false",
            )
            .with_hint("set `head.classifier.pool: mean` or `backbone.cls_token: true`"));
        }
        Ok(())
    }
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
    label_smoothing: f32,
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
        Self::at(Source::Pooled(config.pool), config, (spec, classes), &root.pp("head"))
    }

    /// For the `classes` classes of the added task number `task`, from 1, on its class token.
    ///
    /// # Errors
    /// If the scope holds one of the parameters with another shape.
    pub fn added(
        task: usize,
        config: &ClassifierConfig,
        spec: &FeatureSpec,
        classes: usize,
        root: &Scope,
    ) -> Result<Self> {
        Self::at(Source::Added(task), config, (spec, classes), &root.pp("heads").pp(task))
    }

    fn at(
        source: Source,
        config: &ClassifierConfig,
        (spec, classes): (&FeatureSpec, usize),
        scope: &Scope,
    ) -> Result<Self> {
        let init = Init::TruncatedNormal(0.02);
        let weight = scope.param("weight", (classes, spec.channels), init)?;
        let bias = scope.param("bias", classes, Init::Const(0.0))?;
        Ok(Self { source, label_smoothing: config.label_smoothing, weight, bias })
    }

    /// Logits `[B, K]`.
    ///
    /// # Errors
    /// If the class token is wanted and there is none, or the widths differ.
    pub fn forward(&self, features: &Features) -> Result<Tensor> {
        ops::linear(&self.pooled(features)?, &self.weight, Some(&self.bias))
    }

    /// What it says of a single image: logits, and their softmax.
    ///
    /// # Errors
    /// As [`ClassifierHead::forward`], and if there are several images.
    pub(crate) fn answer(&self, features: &Features) -> Result<(Vec<f32>, Vec<f32>)> {
        let logits = self.forward(features)?.detach();
        let probabilities = ops::softmax(&logits)?.squeeze(0)?.to_vec1()?;
        Ok((logits.squeeze(0)?.to_vec1()?, probabilities))
    }

    /// The tokens that stand for the images, `[B, C]`.
    ///
    /// # Errors
    /// If the class token is wanted and there is none.
    pub fn pooled(&self, features: &Features) -> Result<Tensor> {
        let patches = features.tokens.dim(1)? - features.prefix;
        match self.source {
            Source::Added(task) => match features.added.get(task.wrapping_sub(1)) {
                Some(token) => Ok(token.clone()),
                None => bail!("the backbone has no added task {task}"),
            },
            Source::Pooled(Pool::Cls) if features.prefix == 0 => {
                bail!("`pool: cls` needs a class token, the backbone has none")
            }
            Source::Pooled(Pool::Mean) if patches > 0 => {
                features.tokens.narrow(1, features.prefix, patches)?.mean(1)
            }
            // What was pooled before is alone.
            _ => features.tokens.narrow(1, 0, 1)?.squeeze(1),
        }
    }

    /// The share of every class, `[B, K]`.
    fn distribution(&self, targets: &[ClassTarget]) -> Result<Tensor> {
        let classes = self.bias.dim(0)?;
        let smoothing = self.label_smoothing;
        let mut shares = vec![smoothing / classes as f32; targets.len() * classes];
        for (row, target) in shares.chunks_mut(classes).zip(targets) {
            let parts = [(target.class, target.share), (target.other, 1.0 - target.share)];
            for (class, share) in parts {
                let Some(value) = row.get_mut(class as usize) else {
                    bail!("the label {class} is none of the {classes} classes")
                };
                *value += (1.0 - smoothing) * share;
            }
        }
        Tensor::from_vec(shares, (targets.len(), classes), self.bias.device())
    }
}

impl Head for ClassifierHead {
    type Target = ClassTarget;
    /// Logits, one per class.
    type Prediction = Vec<f32>;

    fn losses(
        &self,
        features: &Features,
        targets: &[ClassTarget],
        _ctx: &StepContext,
    ) -> Result<Losses> {
        let logits = self.forward(features)?;
        let sum = ops::soft_cross_entropy(&logits, &self.distribution(targets)?)?;
        let count = targets.len() as f64;
        Ok(Losses {
            terms: vec![Term { name: "ce", weight: 1.0, sum, count }],
            logits: Some(logits),
        })
    }

    fn predict(&self, features: &Features, _images: &[ImageMeta]) -> Result<Vec<Vec<f32>>> {
        self.forward(features)?.detach().to_vec2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use rescatter::params::ParamStore;

    #[test]
    fn targets_are_smoothed_and_mixed_as_in_timm() -> Result<()> {
        let params = ParamStore::new(&Device::Cpu, DType::F32, 0);
        let spec = FeatureSpec { channels: 2, stride_px: 1.0 };
        let config = ClassifierConfig { label_smoothing: 0.1, ..ClassifierConfig::default() };
        let head = ClassifierHead::new(&config, &spec, 4, &params.root())?;
        let mixed = ClassTarget { class: 0, other: 2, share: 0.75 };
        let shares: Vec<Vec<f32>> = head.distribution(&[mixed, 3.into()])?.to_vec2()?;
        // 0.1 / 4 everywhere, and 0.9 times the shares.
        let expected = [[0.7, 0.025, 0.25, 0.025], [0.025, 0.025, 0.025, 0.925]];
        for (found, expected) in shares.iter().flatten().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-6, "{shares:?}");
        }
        let error = head.distribution(&[4.into()]).unwrap_err().to_string();
        assert!(error.contains("label 4 is none of the 4 classes"), "{error}");
        Ok(())
    }
}
