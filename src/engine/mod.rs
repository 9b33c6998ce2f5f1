//! Training: optimizers, schedules, the loop, runs on disk and their logs.

pub mod ema;
pub mod optim;
pub mod schedule;

pub use ema::Ema;
pub use optim::{Optimizer, Parameter, Rule, clip_scale, gradient_norm};
pub use schedule::Schedule;
