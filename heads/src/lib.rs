//! What a task adds to the shared backbone.
//!
//! A head is one file or folder here, one variant of [`HeadConfig`], and the arms that the compiler then asks for.

pub mod cached;
pub mod calibration;
pub mod classification;
pub mod classifier;
pub mod detection;
pub mod evaluation;
pub mod extension;
pub mod flops;
mod images;
pub mod kept;
pub mod linear;
pub mod mask_rcnn;
pub mod merge;
pub mod pixel_classifier;
pub mod predictor;
pub mod prune;
pub mod run;
pub mod segmentation;
pub mod segmentation_loss;
pub mod task;
pub mod tasks;
pub mod temporal;
mod token_map;
pub mod upernet;
pub mod video;

use rescatter::backbone::Reads;
use serde::{Deserialize, Serialize};

use classifier::Pool;

pub use cached::CachedFeatures;
pub use classification::ClassPredictor;
pub use classifier::{ClassifierConfig, ClassifierHead};
pub use detection::DetectionPredictor;
pub use evaluation::Evaluation;
pub use linear::LinearConfig;
pub use mask_rcnn::{Detections, MaskRcnn, MaskRcnnConfig};
pub use predictor::{Prediction, Predictor};
pub use run::Trained;
pub use segmentation::{ClassScores, SegmentationHead};
pub use task::TaskModel;
pub use temporal::{TemporalHead, TemporalQueryConfig, TemporalTransformerConfig};
pub use upernet::UperNetConfig;
pub use video::VideoPredictor;

/// The whole config of a run, with every head that there is.
pub type Config = rescatter::config::Config<HeadConfig>;

/// The section `head`: which head sits on the backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadConfig {
    /// Segmentation with UPerNet.
    Upernet(UperNetConfig),
    /// Segmentation with batch norm and a 1×1 convolution.
    Linear(LinearConfig),
    /// Detection with Mask R-CNN.
    MaskRcnn(MaskRcnnConfig),
    /// Classification.
    Classifier(ClassifierConfig),
    /// Video classification with a query over all tokens of all frames.
    TemporalQuery(TemporalQueryConfig),
    /// Video classification with a transformer over the frames.
    TemporalTransformer(TemporalTransformerConfig),
}

impl HeadConfig {
    /// The key in the config.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Upernet(_) => "upernet",
            Self::Linear(_) => "linear",
            Self::MaskRcnn(_) => "mask_rcnn",
            Self::Classifier(_) => "classifier",
            Self::TemporalQuery(_) => "temporal_query",
            Self::TemporalTransformer(_) => "temporal_transformer",
        }
    }

    /// What the head reads of a backbone with `depth` blocks.
    pub fn reads(&self, depth: usize) -> Reads {
        match self {
            Self::Upernet(config) => Reads::all(&config.taps),
            Self::Linear(config) if config.taps.is_empty() => Reads::all(&[depth - 1]),
            Self::Linear(config) => Reads::all(&config.taps),
            Self::MaskRcnn(config) => Reads::all(&[config.tap.unwrap_or(depth - 1)]),
            Self::Classifier(config) if config.pool == Pool::Cls => Reads::prefix(),
            Self::Classifier(_) | Self::TemporalQuery(_) | Self::TemporalTransformer(_) => {
                Reads::all(&[])
            }
        }
    }

    /// Whether class or register tokens of the last block have a say in predictions.
    pub fn reads_prefix(&self) -> bool {
        match self {
            Self::Upernet(_) | Self::Linear(_) | Self::MaskRcnn(_) => false,
            Self::Classifier(config) => config.pool == Pool::Cls,
            Self::TemporalQuery(_) | Self::TemporalTransformer(_) => true,
        }
    }
}

/// What the labels of a data set look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels {
    /// K.
    pub classes: usize,
    /// The label that counts nowhere.
    pub ignore_index: u32,
}
