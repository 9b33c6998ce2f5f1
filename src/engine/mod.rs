//! Training: optimizers, schedules, the loop, runs on disk and their logs.

pub mod ema;
pub mod log;
pub mod optim;
pub mod progress;
pub mod run;
pub mod schedule;
pub mod tensorboard;

pub use ema::Ema;
pub use optim::{Optimizer, Parameter, Rule, clip_scale, gradient_norm};
pub use schedule::Schedule;
