//! What tuning may change between embedding and features: patch projection, blocks and final norm.

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Result, Tensor};

use super::Pass;
use super::block::Block;
use super::layers::detached;
use super::patch_embed::PatchEmbed;
use crate::tuning::{AddedTasks, EmbeddingTuning, Pair};

/// One form of these parts.
pub(crate) struct Trunk {
    pub(super) patch_embed: PatchEmbed,
    pub(super) embedding: EmbeddingTuning,
    pub(crate) blocks: Vec<Block>,
    pub(super) norm: Pair,
    /// The tasks that were added to the model.
    pub(super) added: Option<AddedTasks>,
}

impl Trunk {
    /// The same parts without gradients, sharing their storage.
    fn detached(&self) -> Self {
        Self {
            patch_embed: self.patch_embed.with(detached(&self.patch_embed.proj)),
            embedding: self.embedding.detached(),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            norm: detached(&self.norm),
            added: self.added.as_ref().map(AddedTasks::detached),
        }
    }

    /// The same parts on the weights that tuning makes of the pretrained ones.
    fn tuned(&self) -> Result<Self> {
        Ok(Self {
            patch_embed: self.patch_embed.with(self.embedding.patch(&self.patch_embed.proj)?),
            embedding: self.embedding.clone(),
            blocks: self.blocks.iter().map(Block::tuned).collect::<Result<_>>()?,
            norm: self.embedding.norm(&self.norm)?,
            added: self.added.clone(),
        })
    }

    /// The weights that tuning may change, by their names in the backbone.
    fn pairs(&self) -> impl Iterator<Item = (String, &Pair)> {
        let ends = [
            ("patch_embed.proj".to_owned(), &self.patch_embed.proj),
            ("norm".to_owned(), &self.norm),
        ];
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            block.pairs().map(move |(name, pair)| (format!("blocks.{i}.{name}"), pair))
        });
        ends.into_iter().chain(blocks)
    }

    /// The vectors from which tuning makes weights.
    fn tuning_tensors(&self) -> Vec<&Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| block.tuning().weight_tensors());
        blocks.chain(self.embedding.weight_tensors()).collect()
    }
}

/// The parts as they are trained, and as inference wants them: without gradients, so that no activation is kept, and
/// with the tuned weights computed once for many passes.
pub(super) struct Trunks {
    trained: Arc<Trunk>,
    frozen: Arc<Trunk>,
    folded: RwLock<Option<Folded>>,
}

/// Tuned weights and the values that they were computed from.
struct Folded {
    from: Vec<f32>,
    trunk: Arc<Trunk>,
}

impl Trunks {
    pub(super) fn new(trained: Trunk) -> Self {
        let frozen = Arc::new(trained.detached());
        Self { trained: Arc::new(trained), frozen, folded: RwLock::new(None) }
    }

    /// What `pass` runs on.
    pub(super) fn of(&self, pass: &Pass) -> Result<Arc<Trunk>> {
        if !pass.tracks() {
            return self.inference();
        }
        *self.folded.write().unwrap_or_else(PoisonError::into_inner) = None;
        if self.changes_weights() {
            return self.trained.tuned().map(Arc::new);
        }
        Ok(self.trained.clone())
    }

    /// The parts as they are trained.
    pub(super) fn trained(&self) -> &Trunk {
        &self.trained
    }

    /// The parts without gradients. Tuned weights stay from the last call if what they are made of has not changed;
    /// comparing it costs less than a thousandth of a pass.
    pub(super) fn inference(&self) -> Result<Arc<Trunk>> {
        if !self.changes_weights() {
            return Ok(self.frozen.clone());
        }
        let from = self.sources()?;
        let folded = self.folded.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(folded) = folded.as_ref().filter(|folded| folded.from == from) {
            return Ok(folded.trunk.clone());
        }
        drop(folded);
        let trunk = Arc::new(self.frozen.tuned()?);
        let folded = Folded { from, trunk: trunk.clone() };
        *self.folded.write().unwrap_or_else(PoisonError::into_inner) = Some(folded);
        Ok(trunk)
    }

    /// The tuned weights as plain ones, by their names in the backbone.
    pub(super) fn merged(&self) -> Result<Vec<(String, Tensor)>> {
        let tuned = self.frozen.tuned()?;
        let tensors = tuned.pairs().flat_map(|(name, (weight, bias))| {
            [(format!("{name}.weight"), weight.clone()), (format!("{name}.bias"), bias.clone())]
        });
        Ok(tensors.collect())
    }

    fn changes_weights(&self) -> bool {
        !self.frozen.tuning_tensors().is_empty()
    }

    /// All values that may change while the model is trained and that tuned weights depend on.
    fn sources(&self) -> Result<Vec<f32>> {
        let own = self.trained.pairs().flat_map(|(_, (weight, bias))| [weight, bias]);
        let trained = own.filter(|tensor| tensor.track_op());
        let parts = trained.chain(self.frozen.tuning_tensors()).map(|t| t.detach().flatten_all());
        let all = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?;
        all.to_dtype(candle_core::DType::F32)?.to_vec1()
    }
}

/// The weights and the pass that a forward pass runs with. Where tasks were added, everything else is as at inference:
/// what they are trained on is what they will see, and nothing of it needs a gradient.
pub(super) struct Form<'a> {
    pub(super) trunk: Arc<Trunk>,
    pub(super) pass: Pass<'a>,
    pub(super) added: Option<AddedTasks>,
}

impl<'a> Form<'a> {
    pub(super) fn new(trunks: &Trunks, pass: &Pass<'a>) -> Result<Self> {
        let Some(tasks) = &trunks.trained().added else {
            return Ok(Self { trunk: trunks.of(pass)?, pass: *pass, added: None });
        };
        let tasks = if pass.tracks() { tasks.clone() } else { tasks.detached() };
        let pass = if let Pass::Complete(_) = pass { *pass } else { Pass::Infer };
        Ok(Self { trunk: trunks.inference()?, pass, added: Some(tasks) })
    }
}
