//! What is trained besides the head: one field per method.

use serde::{Deserialize, Serialize};

/// What is trained besides the head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuningConfig {
    /// Which of the pretrained weights are trained themselves.
    pub backbone: BackboneTuning,
    /// Bottleneck beside or after the MLP (\[DyT\] Eq. 1).
    pub adapter: Option<AdapterConfig>,
    /// Low-rank changes of weights (Hu et al., arXiv 2106.09685).
    pub lora: Option<LoraConfig>,
    /// Rank-one rescaling of weights (arXiv 2403.19067).
    pub rlrr: Option<RlrrConfig>,
    /// Scale and shift after every linear layer and norm (Lian et al., arXiv 2210.08823).
    pub ssf: Option<SsfConfig>,
    /// Factors on keys, values and the hidden layer of the MLP ((IA)³, Liu et al., arXiv 2205.05638).
    pub ia3: Option<Ia3Config>,
    /// Learned tokens beside the image's (visual prompt tuning, Jia et al., arXiv 2203.12119).
    pub vpt: Option<VptConfig>,
    /// Learned keys and values in every layer (arXiv 2203.15243).
    pub memory: Option<MemoryConfig>,
    /// Bottleneck with a convolution over time before the attention, for clips.
    pub st_adapter: Option<StAdapterConfig>,
}

impl TuningConfig {
    /// Learned tokens that pass a block beside those of the image.
    pub fn prompts(&self) -> usize {
        self.vpt.map_or(0, |vpt| vpt.tokens)
    }
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

/// Which of the pretrained weights are trained themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackboneTuning {
    /// None: with nothing else, the linear probe.
    #[default]
    Frozen,
    /// The biases (BitFit, Ben Zaken et al., arXiv 2106.10199).
    Bitfit,
    /// The last blocks, so many, and the final norm.
    Partial(usize),
    /// All of them.
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
    #[serde(default = "super::one")]
    pub experts: usize,
    /// Where it acts.
    #[serde(default)]
    pub placement: Placement,
}

/// Where an adapter acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Beside the part: x + Part(x) + A(x) (AdaptFormer, arXiv 2205.13535).
    #[default]
    Parallel,
    /// After it: y + A(y) with y = x + Part(x) (Houlsby et al., arXiv 1902.00751).
    Sequential,
}

/// W' = W + alpha / rank · Up · Down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// r.
    pub rank: usize,
    /// α; by default the rank, which is a factor of 1.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// The weights that change.
    #[serde(default = "queries_and_values")]
    pub targets: Vec<LoraTarget>,
}

/// A weight of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output.
    O,
    /// The first layer of the MLP.
    Fc1,
    /// The second layer of the MLP.
    Fc2,
}

/// W' = W + W ∘ (scale_line · scale_col), with scale and shift after the norms and the patch embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlrrConfig {
    /// How it starts.
    pub init: RlrrInit,
}

/// How RLRR starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RlrrInit {
    /// Both vectors Kaiming-uniform, as published: weights start with about 7 % of relative noise.
    #[default]
    Kaiming,
    /// Exactly as the pretrained model: `scale_line` is 0 (both would stay there), norms are not changed.
    Zero,
}

/// Scale and shift have no options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SsfConfig {}

/// (IA)³ has no options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ia3Config {}

/// Prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VptConfig {
    /// m.
    pub tokens: usize,
    /// Whether every layer gets its own in place of those that the layer before left.
    #[serde(default)]
    pub deep: bool,
}

/// Learned memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// m, per layer.
    pub tokens: usize,
    /// Whether the rows join before the layer norm, and so pass it.
    #[serde(default = "super::yes")]
    pub before_norm: bool,
    /// Whether patches see the rows; otherwise the class token alone does. Of an added task it always is its class token
    /// alone.
    #[serde(default = "super::yes")]
    pub patches_read: bool,
    /// m of every earlier task (0: it has none) where this run adds one to them; `extends` fills it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<usize>,
}

fn over_time() -> [usize; 3] {
    [3, 1, 1]
}
fn default_adapter_scale() -> f64 {
    0.1
}
fn queries_and_values() -> Vec<LoraTarget> {
    vec![LoraTarget::Q, LoraTarget::V]
}
