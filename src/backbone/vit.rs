//! The whole transformer: embedding, blocks, final norm.

use std::sync::{Arc, RwLock};

use candle_core::{Result, Tensor, bail};

use super::block::Block;
use super::layers::{NORM_EPS, layer_norm};
use super::patch_embed::PatchEmbed;
use super::roles::Roles;
use super::segment::{Replay, segments};
use super::trunk::{Form, Trunk, Trunks};
use super::{Dims, Features, Pass, Reads, TokenGrid, resize_pos_embed};
use crate::config::{BackboneConfig, DispatchConfig, Inference, TuningConfig};
use crate::dispatch::{KeptStats, Selector, Site};
use crate::head::FeatureSpec;
use crate::ops;
use crate::params::{Init, Keep, Scope};
use crate::tuning::{AddedTasks, BlockTuning, EmbeddingTuning};

/// A vision transformer with token dispatchers and what tuning methods add.
pub struct Vit {
    dims: Dims,
    dispatch: DispatchConfig,
    taps: Vec<usize>,
    grid: (usize, usize),
    no_embed_class: bool,
    cls_token: Option<Tensor>,
    reg_token: Option<Tensor>,
    pos_embed: Tensor,
    trunks: Trunks,
    /// Class, register and prompt tokens before the patches.
    prefix: usize,
    thresholds: RwLock<Option<Vec<f32>>>,
    checkpoint_blocks: Option<usize>,
}

impl Vit {
    /// The backbone whose parameters are directly below `scope`, for a head that `reads` so much of it.
    ///
    /// # Errors
    /// If the sizes do not fit together or a tap is beyond the last block.
    pub fn new(
        cfg: &BackboneConfig,
        dispatch: &DispatchConfig,
        tuning: &TuningConfig,
        reads: &Reads,
        scope: &Scope,
    ) -> Result<Self> {
        let taps = &reads.taps;
        let dims = Dims::new(cfg)?;
        if let Some(tap) = taps.iter().find(|&&tap| tap >= dims.depth) {
            bail!("tap {tap} is beyond the last of {} blocks (they count from 0)", dims.depth);
        }
        let on_grid = !taps.is_empty() || dims.window.is_some() || dims.rel_pos.is_some();
        let sites = dispatch.variant.dispatched();
        if dispatch.tome.is_some() && (on_grid || sites.iter().any(|&site| site != Site::Mlp)) {
            bail!(
                "`dispatch.tome` merges tokens by the keys of all: there are no maps, windows or skipped keys"
            );
        }
        let extended = tuning.memory.as_ref().is_some_and(|memory| !memory.earlier.is_empty());
        let keep = if cfg.weights.is_some() { Keep::Trained } else { Keep::All };
        let base = if extended { scope.keeping(keep) } else { scope.clone() };
        let roles = Roles::new(tuning.backbone, dims.depth, &base);
        let [rows, columns] = cfg.pos_embed_grid;
        let positions = rows * columns + if cfg.no_embed_class { 0 } else { dims.prefix() };
        let prefix = dims.prefix() + tuning.prompts();
        let leaves_out = reads.leave_out_patches(dispatch, tuning);
        let block = |i: usize| {
            let fed = (leaves_out && i + 1 == dims.depth).then_some(prefix);
            let added =
                BlockTuning::new(tuning, dispatch.variant.adapted(), &dims, i, &base.trainable())?;
            Block::new(i, &dims, dispatch, added, fed, &roles.block(i).pp("blocks").pp(i))
        };
        let others = roles.embedding();
        // Memory is trained together with the class token that reads it.
        let class = if tuning.memory.is_some() { base.trainable() } else { others.clone() };
        let token = |name: &str, count: usize, scope: &Scope| {
            let init = Init::Normal(1e-6);
            (count > 0).then(|| scope.param(name, (1, count, dims.dim), init)).transpose()
        };
        let added = match &tuning.memory {
            Some(memory) => AddedTasks::new(memory, &dims, &base.trainable(), &scope.trainable())?,
            None => None,
        };
        Ok(Self {
            dispatch: dispatch.clone(),
            taps: taps.clone(),
            grid: (rows, columns),
            no_embed_class: cfg.no_embed_class,
            cls_token: token("cls_token", dims.cls_tokens, &class)?,
            reg_token: token("reg_token", dims.reg_tokens, &others)?,
            pos_embed: others.param(
                "pos_embed",
                (1, positions, dims.dim),
                Init::TruncatedNormal(0.02),
            )?,
            trunks: Trunks::new(Trunk {
                patch_embed: PatchEmbed::new(dims.patch, dims.dim, &others.pp("patch_embed"))?,
                embedding: EmbeddingTuning::new(tuning, &dims, &base.trainable())?,
                blocks: (0..dims.depth).map(block).collect::<Result<_>>()?,
                norm: layer_norm(dims.dim, &roles.norm().pp("norm"))?,
                added,
            }),
            prefix,
            thresholds: RwLock::new(None),
            checkpoint_blocks: None,
            dims,
        })
    }

    /// The same backbone, of which a training pass runs at most `blocks` at a time twice, instead of keeping activations
    /// for the backward pass; `None` keeps them.
    #[must_use]
    pub fn with_checkpoints(self, blocks: Option<usize>) -> Self {
        Self { checkpoint_blocks: blocks, ..self }
    }

    /// Images `[B, 3, H, W]`, normalised, of any size: padded right and bottom with zeros to a multiple of the patch, or of
    /// patch × window where the config says so; patches beyond the former are cropped from everything that is returned.
    ///
    /// # Errors
    /// If the images or the pass do not fit the model.
    pub fn forward(&self, images: &Tensor, pass: &Pass) -> Result<Features> {
        self.forward_clips(images, 1, pass)
    }

    /// [`Vit::forward`] of clips of `frames` frames each, `[B·T, 3, H, W]` with the frames of a clip adjacent. A training
    /// pass wants one sample number per frame.
    ///
    /// # Errors
    /// As [`Vit::forward`], and if the images are no whole clips.
    pub fn forward_clips(&self, images: &Tensor, frames: usize, pass: &Pass) -> Result<Features> {
        let mut maps: Vec<Option<Tensor>> = vec![None; self.taps.len()];
        let (_, _, height, width) = images.dims4()?;
        let (size, prefix) = ((height, width), self.prefix);
        let (grid, padded) = (self.dims.grid(size), self.dims.padded_grid(size));
        let form = Form::new(&self.trunks, pass)?;
        let clips = Clips { images, frames };
        let Passed { tokens, added, kept } = self.run(clips, &form, |index, x, _| {
            for (map, _) in maps.iter_mut().zip(&self.taps).filter(|(_, tap)| **tap == index) {
                *map = Some(map_of(x, prefix, padded, grid)?);
            }
            Ok(())
        })?;
        let last = cropped(&tokens, padded, grid)?;
        let (weight, bias) = &form.trunk.norm;
        let normed = |x: &Tensor| ops::layer_norm(x, weight, bias, NORM_EPS);
        Ok(Features {
            maps: maps.into_iter().flatten().collect(),
            tokens: normed(&last)?,
            added: added.iter().map(|x| normed(x)?.squeeze(1)).collect::<Result<_>>()?,
            grid,
            prefix,
            frames,
            stride_px: self.dims.patch as f32,
            kept,
        })
    }

    /// Runs the blocks and shows `look` the tokens `[B, N, C]` after each, padding of whole windows included; returns the
    /// last ones and who worked where.
    ///
    /// # Errors
    /// If the images or the pass do not fit the model, or `look` fails.
    pub fn visit(
        &self,
        images: &Tensor,
        pass: &Pass,
        look: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<(Tensor, KeptStats)> {
        self.visit_clips(images, 1, pass, look)
    }

    /// [`Vit::visit`] for clips of `frames` images each, which adapters over time tell apart.
    ///
    /// # Errors
    /// As [`Vit::visit`], and if the images are no whole clips.
    pub fn visit_clips(
        &self,
        images: &Tensor,
        frames: usize,
        pass: &Pass,
        mut look: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<(Tensor, KeptStats)> {
        let form = Form::new(&self.trunks, pass)?;
        let passed = self.run(Clips { images, frames }, &form, |index, x, _| look(index, x))?;
        Ok((passed.tokens, passed.kept))
    }

    /// [`Vit::visit`] that shows the class tokens of added tasks too, each `[B, 1, C]`.
    ///
    /// # Errors
    /// As [`Vit::visit`].
    pub fn visit_with_added(
        &self,
        images: &Tensor,
        pass: &Pass,
        look: impl FnMut(usize, &Tensor, &[Tensor]) -> Result<()>,
    ) -> Result<(Tensor, KeptStats)> {
        let clips = Clips { images, frames: 1 };
        let Passed { tokens, kept, .. } = self.run(clips, &Form::new(&self.trunks, pass)?, look)?;
        Ok((tokens, kept))
    }

    fn run(
        &self,
        Clips { images, frames }: Clips,
        form: &Form,
        mut look: impl FnMut(usize, &Tensor, &[Tensor]) -> Result<()>,
    ) -> Result<Passed> {
        let (batch, _, height, width) = images.dims4()?;
        if frames == 0 || !batch.is_multiple_of(frames) {
            bail!("{batch} images are no whole clips of {frames} frames");
        }
        let Form { trunk, pass, added: tasks } = form;
        let (mut x, padded) = self.embed(images, trunk)?;
        let grid = self.dims.grid((height, width));
        let thresholds = self.thresholds();
        let mut selector = Selector::new(pass, &self.dispatch, thresholds.as_deref(), self.prefix)
            .cropping(padded, grid);
        selector.seed_random(images)?;
        let mut added = match tasks {
            Some(tasks) => tasks.tokens(batch)?,
            None => Vec::new(),
        };
        let places = TokenGrid { grid: padded, frames };
        let replay = Replay::new(form, (&self.dispatch, self.prefix), places, grid);
        if let Some((most, replay)) = self.checkpoint_blocks.zip(replay) {
            let replay = Arc::new(replay);
            for blocks in segments(self.dims.depth, most, &self.taps) {
                x = replay.pass(&blocks, &x, &mut selector)?;
                look(blocks.end - 1, &x, &added)?;
            }
            return Ok(Passed { tokens: x, added, kept: selector.finish() });
        }
        for (index, block) in trunk.blocks.iter().enumerate() {
            if !pass.tracks() {
                x = x.detach();
            }
            x = block.enter(&x, places)?;
            if let Some(tasks) = tasks {
                added = block.read(tasks, &x, &added)?;
            }
            x = block.forward(&x, padded, &mut selector)?;
            look(index, &x, &added)?;
        }
        Ok(Passed { tokens: x, added, kept: selector.finish() })
    }

    /// The tokens before the first block, `[B, prefix + P, C]` (class token, registers, prompts, patches), and the grid of
    /// the patches.
    pub(crate) fn embed(&self, images: &Tensor, trunk: &Trunk) -> Result<(Tensor, (usize, usize))> {
        let (_, _, height, width) = images.dims4()?;
        let (rows, columns) = self.dims.padded_grid((height, width));
        let patch = self.dims.patch;
        let images = crate::model::pad_to(images, (rows * patch, columns * patch))?;
        let (patches, grid) = trunk.patch_embed.forward(&images)?;
        let prefix = if self.no_embed_class { 0 } else { self.dims.prefix() };
        let pos = resize_pos_embed(&self.pos_embed, prefix, self.grid, grid)?;
        let batch = patches.dim(0)?;
        let patches = if self.no_embed_class { patches.broadcast_add(&pos)? } else { patches };
        let mut parts = Vec::new();
        for tokens in [&self.cls_token, &self.reg_token].into_iter().flatten() {
            parts.push(tokens.broadcast_as((batch, tokens.dim(1)?, self.dims.dim))?);
        }
        parts.push(patches);
        let x = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? };
        let x = if self.no_embed_class { x } else { x.broadcast_add(&pos)? };
        Ok((trunk.embedding.with_prompts(x)?, grid))
    }

    /// What inference runs on: without gradients, tuned weights in place of the pretrained ones.
    pub(crate) fn inference(&self) -> Result<Arc<Trunk>> {
        self.trunks.inference()
    }

    /// The pretrained layers' weights as tuning changes them, by their names in the backbone: those of a plain model with
    /// the same outputs, where nothing else is added.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn merged_weights(&self) -> Result<Vec<(String, Tensor)>> {
        self.trunks.merged()
    }

    /// Whether this is a trained model with tasks added to it.
    pub fn is_extended(&self) -> bool {
        self.trunks.trained().added.is_some()
    }

    /// Rows and columns of patches that the position embedding is for.
    pub fn grid(&self) -> (usize, usize) {
        self.grid
    }

    /// Class, register and prompt tokens before the patches.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// What a head must know.
    pub fn spec(&self) -> FeatureSpec {
        FeatureSpec { channels: self.dims.dim, stride_px: self.dims.patch as f32 }
    }

    /// The sizes.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// How tokens are dispatched.
    pub fn dispatch(&self) -> &DispatchConfig {
        &self.dispatch
    }

    /// The number of learned dispatchers, and so of calibrated thresholds.
    pub fn dispatchers(&self) -> usize {
        if self.dispatch.select.learns() { self.dispatched_parts() } else { 0 }
    }

    /// How many times tokens are dispatched, by learned dispatchers or at random.
    pub fn dispatched_parts(&self) -> usize {
        self.dispatch.variant.dispatched().len() * self.dims.depth
    }

    /// Whether inference waits for [`Vit::set_thresholds`].
    pub fn needs_thresholds(&self) -> bool {
        self.dispatchers() > 0
            && matches!(self.dispatch.inference, Inference::Calibrated(_))
            && self.thresholds().is_none()
    }

    /// Stores the calibrated thresholds on the logits, one per dispatcher.
    pub fn set_thresholds(&self, thresholds: Vec<f32>) {
        *self.thresholds.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(thresholds);
    }

    /// The calibrated thresholds, where there are any.
    pub fn thresholds(&self) -> Option<Vec<f32>> {
        self.thresholds.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Images `[B·T, 3, H, W]`, the T frames of a clip adjacent.
#[derive(Clone, Copy)]
struct Clips<'a> {
    images: &'a Tensor,
    frames: usize,
}

/// What came out of the last block.
struct Passed {
    tokens: Tensor,
    /// The class tokens of added tasks, each `[B, 1, C]`.
    added: Vec<Tensor>,
    kept: KeptStats,
}

/// The patches of `x` `[B, prefix + P, C]`, which lie on the grid `padded`, as a map `[B, C, h, w]` of the upper left `grid`.
fn map_of(
    x: &Tensor,
    prefix: usize,
    padded: (usize, usize),
    grid: (usize, usize),
) -> Result<Tensor> {
    let (batch, _, dim) = x.dims3()?;
    let patches = x.narrow(1, prefix, padded.0 * padded.1)?.transpose(1, 2)?.contiguous()?;
    let map = patches.reshape((batch, dim, padded.0, padded.1))?;
    if padded == grid { Ok(map) } else { crate::model::crop(&map, grid)?.contiguous() }
}

/// The tokens `[B, P, C]` of the upper left `grid` out of those of the grid `padded`; there are no others where they differ.
fn cropped(x: &Tensor, padded: (usize, usize), grid: (usize, usize)) -> Result<Tensor> {
    if padded == grid {
        return Ok(x.clone());
    }
    let (batch, _, dim) = x.dims3()?;
    x.reshape((batch, padded.0, padded.1, dim))?
        .narrow(1, 0, grid.0)?
        .narrow(2, 0, grid.1)?
        .contiguous()?
        .reshape((batch, grid.0 * grid.1, dim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdapterConfig, BackboneTuning, Placement, Variant};
    use crate::params::{ParamStore, Role};
    use candle_core::{DType, Device};

    fn backbone() -> BackboneConfig {
        BackboneConfig {
            arch: None,
            embed_dim: Some(12),
            depth: Some(2),
            num_heads: Some(3),
            mlp_ratio: None,
            patch_size: 4,
            layer_scale: false,
            cls_token: true,
            reg_tokens: 2,
            no_embed_class: false,
            pos_embed_grid: [3, 3],
            window: None,
            rel_pos: None,
            weights: None,
            drop_path: 0.0,
        }
    }

    fn vit(store: &ParamStore, tuned: BackboneTuning) -> Vit {
        dispatched(Variant::Mlp, store, tuned)
    }

    fn dispatched(variant: Variant, store: &ParamStore, tuned: BackboneTuning) -> Vit {
        let dispatch = DispatchConfig { variant, ..DispatchConfig::default() };
        let adapter = AdapterConfig {
            bottleneck: 4,
            scale: 0.5,
            dropout: 0.0,
            experts: 1,
            placement: Placement::Parallel,
        };
        let tuning =
            TuningConfig { backbone: tuned, adapter: Some(adapter), ..TuningConfig::default() };
        Vit::new(&backbone(), &dispatch, &tuning, &Reads::all(&[1]), &store.root()).unwrap()
    }

    fn store() -> ParamStore {
        ParamStore::new(&Device::Cpu, DType::F32, 0)
    }

    #[test]
    fn the_frozen_embedding_and_inference_carry_no_graph() -> Result<()> {
        let store = store();
        let vit = vit(&store, BackboneTuning::Frozen);
        let images = Tensor::randn(0f32, 1.0, (2, 3, 12, 12), &Device::Cpu)?;
        assert!(!vit.embed(&images, vit.trunks.trained())?.0.track_op());
        let features = vit.forward(&images, &Pass::Infer)?;
        assert!(!features.tokens.track_op() && !features.maps[0].track_op());
        assert!(vit.forward(&images, &Pass::InferMasked)?.tokens.track_op());
        Ok(())
    }

    #[test]
    fn gradients_reach_what_is_trained_and_nothing_else() -> Result<()> {
        use Variant::{Attention, AttentionMlp, Layer, Mlp};
        let cases = [BackboneTuning::Frozen, BackboneTuning::Full];
        let cases = cases.map(|tuned| [Mlp, Attention, AttentionMlp, Layer].map(|v| (tuned, v)));
        for (tuned, variant) in cases.concat() {
            let store = store();
            let vit = dispatched(variant, &store, tuned);
            for (name, param) in store.all() {
                if name.contains("up_proj.weight") {
                    param.var.set(&Tensor::randn(0f32, 0.1, param.var.shape(), &Device::Cpu)?)?;
                }
            }
            let images = Tensor::randn(0f32, 1.0, (2, 3, 12, 12), &Device::Cpu)?;
            let noise = vec![Tensor::randn(0f32, 1.0, (2, 9), &Device::Cpu)?; vit.dispatchers()];
            let features = vit.forward(&images, &Pass::GivenNoise { noise: &noise, tau: 5.0 })?;
            let weights = Tensor::randn(0f32, 1.0, features.tokens.shape(), &Device::Cpu)?;
            let grads = (features.tokens * weights)?.sum_all()?.backward()?;
            for (name, param) in store.all() {
                let grad = grads.get(param.var.as_tensor());
                if param.role == Role::Frozen {
                    assert!(grad.is_none(), "{variant:?}: frozen `{name}` got a gradient");
                } else {
                    let size = grad.map(|g| g.abs()?.sum_all()?.to_scalar::<f32>()).transpose()?;
                    let reached = size.is_some_and(|size| size > 0.0);
                    assert!(reached, "{variant:?}: `{name}` got no gradient");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn images_of_any_size_are_padded_to_the_patch() -> Result<()> {
        let store = store();
        let vit = vit(&store, BackboneTuning::Frozen);
        let images = Tensor::randn(0f32, 1.0, (1, 3, 10, 17), &Device::Cpu)?;
        let features = vit.forward(&images, &Pass::Infer)?;
        assert_eq!((features.grid, features.maps[0].dims()), ((3, 5), &[1usize, 12, 3, 5][..]));
        Ok(())
    }

    #[test]
    fn a_tap_beyond_the_last_block_is_refused() {
        let (dispatch, tuning) = (DispatchConfig::default(), TuningConfig::default());
        let vit = Vit::new(&backbone(), &dispatch, &tuning, &Reads::all(&[2]), &store().root());
        assert!(vit.err().unwrap().to_string().contains("tap 2 is beyond the last of 2 blocks"));
    }
}
