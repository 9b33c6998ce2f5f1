//! Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, §3.2), as torch's `GradScaler`.
//!
//! Gradients in 16 bits of IEEE 754 vanish below 6e-8 and overflow beyond 65504. The loss is multiplied by a power of two, and so
//! is every gradient up to the optimizer, which divides by it; a step whose gradients overflow is left out.

use serde::{Deserialize, Serialize};

/// Good steps after which a larger scale is tried.
const PATIENCE: u64 = 2000;

/// What the loss is multiplied by, and how it came to that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    factor: f64,
    /// Good steps since the factor changed.
    good: u64,
    skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: 65536.0, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// A power of two, at least 1.
    pub fn factor(self) -> f64 {
        self.factor
    }

    /// Steps that were left out.
    pub fn skipped(self) -> u64 {
        self.skipped
    }

    /// Takes note of finite gradients: 2000 steps of them in a row double the factor.
    pub fn grow(&mut self) {
        self.good += 1;
        if self.good == PATIENCE {
            *self = Self { factor: self.factor * 2.0, good: 0, ..*self };
        }
    }

    /// Takes note of a step that is left out because gradients are not finite: halves the factor. Gradients that are too large
    /// without a scale are no matter of scaling, so there is nothing below 1: the answer is then `false`.
    #[must_use]
    pub fn shrink(&mut self) -> bool {
        if self.factor <= 1.0 {
            return false;
        }
        *self = Self { factor: self.factor / 2.0, good: 0, skipped: self.skipped + 1 };
        true
    }
}

#[cfg(test)]
mod tests;
