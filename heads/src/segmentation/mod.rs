//! Semantic segmentation: a score per class for every pixel, whichever head it comes from.

mod argmax;
pub mod inference;
mod views;

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::Features;
use rescatter::data::LabelMap;
use rescatter::head::{FeatureSpec, Head, ImageMeta, Losses, StepContext};
use rescatter::ops;
use rescatter::params::Scope;

use crate::images::extent;
use crate::linear::LinearHead;
use crate::segmentation_loss::{Branch, SegmentationLoss, label_tensor};
use crate::upernet::UperNet;
use crate::{HeadConfig, Labels};

/// A head that scores every pixel.
#[derive(Debug)]
pub struct SegmentationHead {
    trained: Kind,
    /// The same parameters without gradients, so that inference keeps no activation.
    inference: Kind,
    loss: SegmentationLoss,
    aux_weight: f64,
    labels: Labels,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a process holds one of it")]
enum Kind {
    UperNet(UperNet),
    Linear(LinearHead),
}

/// The scores of one image where the head computes them.
#[derive(Debug, Clone)]
pub struct ClassScores {
    /// `[K, h, w]`.
    pub logits: Tensor,
    /// Height and width in pixels of what the map covers: the input with its padding.
    pub extent: (usize, usize),
    /// The image.
    pub meta: ImageMeta,
}

impl ClassScores {
    /// The scores at the size of the model's input, without the padding: `[K, H, W]`.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn at_input_size(&self) -> Result<Tensor> {
        at_size(&self.logits.unsqueeze(0)?, self.extent, self.meta.input)?.squeeze(0)
    }
}

impl ClassScores {
    /// The class of every pixel at the image's own size.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn labels(&self) -> Result<LabelMap> {
        let scores = self.at_input_size()?;
        let values = scores.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
        let scores = ndarray::Array3::from_shape_vec(scores.dims3()?, values);
        let scores = scores.map_err(candle_core::Error::wrap)?;
        Ok(argmax::argmax_resized(scores.view(), self.meta.original))
    }
}

impl SegmentationHead {
    /// Built from the head's section; its parameters take their checkpoint names below `root`.
    ///
    /// # Errors
    /// If the section is another task's or does not fit the backbone.
    pub fn new(
        config: &HeadConfig,
        spec: &FeatureSpec,
        labels: Labels,
        root: &Scope,
    ) -> Result<Self> {
        let (loss, aux) = match config {
            HeadConfig::Upernet(config) => (&config.loss, config.aux.as_ref()),
            HeadConfig::Linear(config) => (&config.loss, None),
            HeadConfig::MaskRcnn(_)
            | HeadConfig::Classifier(_)
            | HeadConfig::TemporalQuery(_)
            | HeadConfig::TemporalTransformer(_) => {
                bail!("`head.{}` cannot segment; choose `upernet` or `linear`", config.name())
            }
        };
        Ok(Self {
            trained: Kind::new(config, spec, labels, root)?,
            inference: Kind::new(config, spec, labels, &root.frozen())?,
            loss: SegmentationLoss::new(loss, labels, root.store().device())?,
            aux_weight: aux.map_or(0.0, |aux| aux.weight),
            labels,
        })
    }

    /// What its labels look like.
    pub fn labels(&self) -> Labels {
        self.labels
    }
}

impl Kind {
    fn new(config: &HeadConfig, spec: &FeatureSpec, labels: Labels, root: &Scope) -> Result<Self> {
        match config {
            HeadConfig::Upernet(config) => {
                Ok(Self::UperNet(UperNet::new(config, spec, labels, root)?))
            }
            HeadConfig::Linear(config) => {
                Ok(Self::Linear(LinearHead::new(config, spec, labels, root)?))
            }
            HeadConfig::MaskRcnn(_)
            | HeadConfig::Classifier(_)
            | HeadConfig::TemporalQuery(_)
            | HeadConfig::TemporalTransformer(_) => {
                bail!("`head.{}` cannot segment; choose `upernet` or `linear`", config.name())
            }
        }
    }

    fn forward(
        &self,
        features: &Features,
        ctx: Option<&StepContext>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        match self {
            Self::UperNet(head) => head.forward(features, ctx),
            Self::Linear(head) => Ok((head.forward(features, ctx)?, None)),
        }
    }
}

impl Head for SegmentationHead {
    type Target = LabelMap;
    type Prediction = ClassScores;

    fn losses(
        &self,
        features: &Features,
        targets: &[LabelMap],
        ctx: &StepContext,
    ) -> Result<Losses> {
        let (logits, auxiliary) = self.trained.forward(features, Some(ctx))?;
        let extent = extent(features);
        let labels = label_tensor(targets, extent, self.labels.ignore_index, logits.device())?;
        let mut terms = self.loss.terms(Branch::Decode, &logits, &labels)?;
        if let Some(auxiliary) = auxiliary {
            for mut term in self.loss.terms(Branch::Auxiliary, &auxiliary, &labels)? {
                term.weight *= self.aux_weight;
                terms.push(term);
            }
        }
        Ok(Losses { terms, logits: Some(logits) })
    }

    fn predict(&self, features: &Features, images: &[ImageMeta]) -> Result<Vec<ClassScores>> {
        let (logits, _) = self.inference.forward(features, None)?;
        let one = |(i, meta): (usize, &ImageMeta)| {
            Ok(ClassScores { logits: logits.get(i)?, extent: extent(features), meta: meta.clone() })
        };
        images.iter().enumerate().map(one).collect()
    }
}

/// `[B, K, h, w]` over `extent` pixels → `[B, K, H, W]` of its upper left `size` pixels.
fn at_size(logits: &Tensor, extent: (usize, usize), size: (usize, usize)) -> Result<Tensor> {
    if size.0 > extent.0 || size.1 > extent.1 {
        bail!("scores cover {extent:?} pixels, {size:?} are wanted");
    }
    let full = ops::resize_bilinear(logits, extent)?;
    if size == extent {
        Ok(full)
    } else {
        full.narrow(2, 0, size.0)?.narrow(3, 0, size.1)?.contiguous()
    }
}
