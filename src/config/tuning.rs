//! What is trained besides the head.

use serde::{Deserialize, Serialize};

/// What is trained besides the head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuningConfig {
    /// Whether the pretrained weights themselves are trained.
    pub backbone: BackboneTuning,
    /// AdaptFormer-style bottleneck beside the MLP (\[DyT\] Eq. 1).
    pub adapter: Option<AdapterConfig>,
    /// Bottleneck with a convolution over time before the attention, for clips.
    pub st_adapter: Option<StAdapterConfig>,
}

/// ST-Adapter (Pan et al., arXiv 2206.13559): A(x) = Up(ReLU(Conv(Down(x)))), the convolution depthwise over frames, rows
/// and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StAdapterConfig {
    /// Hidden width.
    pub bottleneck: usize,
    /// Frames, rows and columns that the convolution sees; all odd.
    #[serde(default = "over_time")]
    pub kernel: [usize; 3],
}

/// Whether the pretrained weights are trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneTuning {
    /// They stay as they are.
    #[default]
    Frozen,
    /// All of them are trained.
    Full,
}

/// A(x) = scale · Up(ReLU(Down(x))).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Hidden width.
    pub bottleneck: usize,
    /// s.
    #[serde(default = "default_adapter_scale")]
    pub scale: f64,
    /// Dropout between ReLU and the up-projection.
    #[serde(default)]
    pub dropout: f64,
    /// Experts merged per image (\[DyT\] Eq. 7); 1 is the plain adapter.
    #[serde(default = "one")]
    pub experts: usize,
}

fn over_time() -> [usize; 3] {
    [3, 1, 1]
}
fn one() -> usize {
    1
}
fn default_adapter_scale() -> f64 {
    0.1
}
