//! Which parts of the backbone a config trains.

use crate::config::BackboneTuning;
use crate::params::Scope;

/// Which of the pretrained weights are trained.
pub(super) struct Roles<'a> {
    tuning: BackboneTuning,
    depth: usize,
    base: &'a Scope<'a>,
}

impl<'a> Roles<'a> {
    pub(super) fn new(tuning: BackboneTuning, depth: usize, base: &'a Scope<'a>) -> Self {
        Self { tuning, depth, base }
    }

    /// For what precedes the blocks.
    pub(super) fn embedding(&self) -> Scope<'a> {
        match self.tuning {
            BackboneTuning::Frozen | BackboneTuning::Partial(_) => self.base.frozen(),
            BackboneTuning::Bitfit => self.base.frozen().with_trainable_biases(),
            BackboneTuning::Full => self.base.trainable(),
        }
    }

    pub(super) fn block(&self, index: usize) -> Scope<'a> {
        match self.tuning {
            BackboneTuning::Partial(last) if index + last >= self.depth => self.base.trainable(),
            _ => self.embedding(),
        }
    }

    /// For the final norm, which goes with the last block.
    pub(super) fn norm(&self) -> Scope<'a> {
        self.block(self.depth - 1)
    }
}
