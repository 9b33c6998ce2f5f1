//! Losses as sums and counts, so that batches may be split and gathered.

mod cross_entropy;
mod dice;
mod elementwise;
mod fused;
mod resized;

pub use cross_entropy::{
    CrossEntropy, Ohem, cross_entropy, cross_entropy_per_pixel, cross_entropy_resized,
    ohem_cross_entropy, soft_cross_entropy,
};
pub use dice::{Dice, dice};
pub use elementwise::{bce_with_logits, kl_div, smooth_l1};

#[cfg(test)]
mod tests;
