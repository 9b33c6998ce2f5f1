//! How good predictions are: counts that are added up sample by sample, in memory that does not grow with the set.

pub mod coco;
mod confusion;
mod top_k;

pub use confusion::{ConfusionMatrix, SegmentationScores};
pub use top_k::{TopK, TopKScores, best};
