//! What follows a norm in the same pass.

use candle_core::{Result, Tensor};

/// What follows a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// max(x, 0).
    Relu,
}

impl Activation {
    /// Of every value.
    pub(super) fn composed(self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x),
            Self::Relu => x.relu(),
        }
    }

    /// What is below becomes it: no activation is a floor at −∞.
    #[inline(always)]
    pub(super) fn floor(self) -> f32 {
        match self {
            Self::None => f32::NEG_INFINITY,
            Self::Relu => 0.0,
        }
    }
}

/// `value`, or `floor` if that is larger; NaN stays, so that a broken value is seen.
#[inline(always)]
pub(super) fn at_least(floor: f32, value: f32) -> f32 {
    if value < floor { floor } else { value }
}
