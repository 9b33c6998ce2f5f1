//! What is done to the sums of a convolution while they are written: bias, or a batch norm with its ReLU.

use super::activation::{Activation, at_least};

/// Channel c of the output becomes max(scale\[c\] · v + shift\[c\], floor).
#[derive(Debug, Clone, Copy)]
pub(super) struct Epilogue<'a> {
    /// 1 if there is none.
    pub(super) scale: Option<&'a [f32]>,
    /// 0 if there is none.
    pub(super) shift: Option<&'a [f32]>,
    pub(super) activation: Activation,
}

impl<'a> Epilogue<'a> {
    /// Adds the bias, if there is one.
    pub(super) fn bias(shift: Option<&'a [f32]>) -> Self {
        Self { scale: None, shift, activation: Activation::None }
    }

    /// A bias that sums can start from, and what is then left to do.
    pub(super) fn split(self) -> (Option<&'a [f32]>, Self) {
        match self.scale {
            None => (self.shift, Self { shift: None, ..self }),
            Some(_) => (None, self),
        }
    }

    /// Whether it leaves everything as it is.
    pub(super) fn is_nothing(&self) -> bool {
        self.scale.is_none() && self.shift.is_none() && self.activation == Activation::None
    }

    /// What becomes of the values of one channel.
    pub(super) fn of(&self, channel: usize) -> Finish {
        Finish {
            scale: self.scale.map_or(1.0, |scale| scale[channel]),
            shift: self.shift.map_or(0.0, |shift| shift[channel]),
            floor: self.activation.floor(),
        }
    }
}

/// An [`Epilogue`] on one channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
    scale: f32,
    shift: f32,
    floor: f32,
}

impl Finish {
    #[inline(always)]
    pub(super) fn of(self, value: f32) -> f32 {
        at_least(self.floor, value.mul_add(self.scale, self.shift))
    }
}
