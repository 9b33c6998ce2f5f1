//! A small transformer over the frames of a clip, with positions in time: for what a bag of frames cannot tell, such as the
//! direction of a motion.

use candle_core::{Result, Tensor, bail};
use rescatter::backbone::{Features, TokenGrid};
use rescatter::ops::{self, AttentionBranch, MlpBranch};
use rescatter::params::{Init, Scope};
use serde::{Deserialize, Serialize};

/// ε of the layer norms.
const NORM_EPS: f64 = 1e-6;

/// Cosines of patches are divided by this temperature, so that the best match stands out.
const TEMPERATURE: f64 = 0.05;

/// The section `head.temporal_transformer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemporalTransformerConfig {
    /// Frames per clip.
    pub frames: usize,
    /// Each frame's patches are averaged into this many rows and columns of cells; with [1, 1] a frame is one token.
    pub cells: [usize; 2],
    /// Each patch is compared with those at most so many rows and columns away in the next frame, and what matches joins its
    /// token: motion is seen at once instead of having to be found by attention. `null` leaves that out.
    pub correlation: Option<usize>,
    /// Width.
    pub dim: usize,
    /// Blocks of attention and MLP.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Dropout before the classifier.
    pub dropout: f64,
}

impl Default for TemporalTransformerConfig {
    fn default() -> Self {
        Self {
            frames: 8,
            cells: [1, 1],
            correlation: None,
            dim: 256,
            depth: 2,
            num_heads: 4,
            dropout: 0.0,
        }
    }
}

/// `proj` to the width of the transformer, plus what matches in the next frame (`correlation`) and the positions of frame and
/// cell; a class token in front; pre-norm blocks; the class token after `norm` stands for the clip.
#[derive(Debug)]
pub struct ClipTransformer {
    config: TemporalTransformerConfig,
    proj: (Tensor, Tensor),
    correlation: Option<(Tensor, Tensor)>,
    frame_embed: Tensor,
    cell_embed: Tensor,
    cls_token: Tensor,
    blocks: Vec<(AttentionBranch, MlpBranch)>,
    norm: (Tensor, Tensor),
}

impl ClipTransformer {
    /// For patches of `channels` channels, below `scope`.
    ///
    /// # Errors
    /// If a size is 0, the heads do not divide the width, or the parameters exist with other shapes.
    pub fn new(config: &TemporalTransformerConfig, channels: usize, scope: &Scope) -> Result<Self> {
        let TemporalTransformerConfig { frames, cells, dim, depth, num_heads, .. } = *config;
        if [frames, cells[0], cells[1], dim, depth, num_heads].contains(&0) {
            bail!("`head.temporal_transformer`: every size must be at least 1");
        }
        if !dim.is_multiple_of(num_heads) {
            bail!("`head.temporal_transformer`: {num_heads} heads do not divide {dim} channels");
        }
        let position = |name: &str, shape: (usize, usize, usize, usize)| {
            scope.param(name, shape, Init::TruncatedNormal(0.02))
        };
        let block = |i: usize| block((dim, num_heads), &scope.pp("blocks").pp(i));
        Ok(Self {
            config: config.clone(),
            proj: linear(channels, dim, &scope.pp("proj"))?,
            correlation: config
                .correlation
                .map(|radius| matching(radius, dim, &scope.pp("correlation")))
                .transpose()?,
            frame_embed: position("frame_embed", (1, frames, 1, dim))?,
            cell_embed: position("cell_embed", (1, 1, cells[0] * cells[1], dim))?,
            cls_token: scope.param("cls_token", (1, 1, dim), Init::TruncatedNormal(0.02))?,
            blocks: (0..depth).map(block).collect::<Result<_>>()?,
            norm: norm(dim, &scope.pp("norm"))?,
        })
    }

    /// The clips' vectors `[B, dim]`.
    ///
    /// # Errors
    /// If the clips have another length than the head is for, or there are no whole clips.
    pub fn forward(&self, features: &Features) -> Result<Tensor> {
        let TemporalTransformerConfig { frames, cells, dim, .. } = self.config;
        if features.frames != frames {
            bail!(
                "`head.temporal_transformer.frames` is {frames}, but the clips have {} frames",
                features.frames
            );
        }
        let (batch, _) = super::clips(&features.tokens, frames)?;
        let (rows, columns) = features.grid;
        let patches = features.tokens.narrow(1, features.prefix, rows * columns)?;
        let mut x = self.in_cells(&patches, features.grid, &self.proj)?;
        if let (Some(radius), Some(correlation)) = (self.config.correlation, &self.correlation) {
            let places = TokenGrid { grid: features.grid, frames };
            let matches = matches(&patches, places, radius)?;
            x = (x + self.in_cells(&matches, features.grid, correlation)?)?;
        }
        let x = x.reshape((batch, frames, cells[0] * cells[1], dim))?;
        let x = x.broadcast_add(&self.frame_embed)?.broadcast_add(&self.cell_embed)?;
        let x = x.reshape((batch, frames * cells[0] * cells[1], dim))?;
        let mut x = Tensor::cat(&[&self.cls_token.broadcast_as((batch, 1, dim))?, &x], 1)?;
        for (attention, mlp) in &self.blocks {
            let places = (1, x.dim(1)?);
            x = mlp.sum(&attention.sum(&x, places, None)?, None, None)?;
        }
        let clip = x.narrow(1, 0, 1)?.squeeze(1)?;
        ops::layer_norm(&clip, &self.norm.0, &self.norm.1, NORM_EPS)
    }

    /// The cells' means of `patches` `[B·T, P, C]`, through `layer`: `[B·T, cells, dim]`.
    fn in_cells(
        &self,
        patches: &Tensor,
        (rows, columns): (usize, usize),
        layer: &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let (images, _, channels) = patches.dims3()?;
        let map = patches.transpose(1, 2)?.reshape((images, channels, rows, columns))?;
        let [cell_rows, cell_columns] = self.config.cells;
        let map = ops::adaptive_avg_pool2d(&map, (cell_rows, cell_columns))?;
        let cells = map.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        ops::linear(&cells, &layer.0, Some(&layer.1))
    }
}

/// Cosines over the temperature of each patch and those around it one frame later (see [`ops::clip_correlation`]). What all
/// patches of a clip have in common is taken from them before: it matches everywhere.
fn matches(patches: &Tensor, places: TokenGrid, radius: usize) -> Result<Tensor> {
    let (images, count, channels) = patches.dims3()?;
    let clips = patches.reshape((images / places.frames, places.frames * count, channels))?;
    let own = clips.broadcast_sub(&clips.mean_keepdim(1)?)?;
    let length = (own.sqr()?.sum_keepdim(2)? + NORM_EPS)?.sqrt()?;
    let directions = own.broadcast_div(&length)?.reshape((images, count, channels))?;
    ops::clip_correlation(&directions, places, radius)? / TEMPERATURE
}

/// A pre-norm block of the width `dim` with timm's names.
fn block((dim, heads): (usize, usize), scope: &Scope) -> Result<(AttentionBranch, MlpBranch)> {
    let (attn, mlp) = (scope.pp("attn"), scope.pp("mlp"));
    let attention = AttentionBranch {
        norm: norm(dim, &scope.pp("norm1"))?,
        eps: NORM_EPS,
        qkv: linear(dim, 3 * dim, &attn.pp("qkv"))?,
        proj: linear(dim, dim, &attn.pp("proj"))?,
        gamma: None,
        heads,
        window: None,
        rel_pos: None,
    };
    let mlp = MlpBranch {
        norm: norm(dim, &scope.pp("norm2"))?,
        eps: NORM_EPS,
        fc1: linear(dim, 4 * dim, &mlp.pp("fc1"))?,
        fc2: linear(4 * dim, dim, &mlp.pp("fc2"))?,
        gamma: None,
    };
    Ok((attention, mlp))
}

/// From the (2 · radius + 1)² matches of a patch to the width; larger than the other weights, as nothing else is as telling.
fn matching(radius: usize, dim: usize, scope: &Scope) -> Result<(Tensor, Tensor)> {
    let shape = (dim, (2 * radius + 1).pow(2));
    let weight = scope.param("weight", shape, Init::KaimingUniform)?;
    Ok((weight, scope.param("bias", dim, Init::Const(0.0))?))
}

fn linear(input: usize, output: usize, scope: &Scope) -> Result<(Tensor, Tensor)> {
    let weight = scope.param("weight", (output, input), Init::TruncatedNormal(0.02))?;
    Ok((weight, scope.param("bias", output, Init::Const(0.0))?))
}

fn norm(dim: usize, scope: &Scope) -> Result<(Tensor, Tensor)> {
    let weight = scope.param("weight", dim, Init::Const(1.0))?;
    Ok((weight, scope.param("bias", dim, Init::Const(0.0))?))
}
