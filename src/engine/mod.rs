//! Training: optimizers, schedules, the loop, runs on disk and their logs.

pub mod checkpoint;
pub mod ema;
pub mod log;
pub mod loss_scale;
pub mod optim;
pub mod progress;
pub mod run;
pub mod schedule;
pub mod step;
pub mod tensorboard;
pub mod trainer;
mod window;

pub use ema::Ema;
pub use loss_scale::LossScale;
pub use optim::{Optimizer, Parameter, Rule, clip_scale, gradient_norm};
pub use run::{Run, Start};
pub use schedule::Schedule;
pub use trainer::{Evaluation, Outcome, Trainer};
