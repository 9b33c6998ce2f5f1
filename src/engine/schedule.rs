//! How the learning rate changes: a pure function of the step, so that a resumed run needs no state.

use crate::config::ScheduleConfig;

/// A schedule of `iterations` steps below a peak of `base_lr`.
#[derive(Debug, Clone)]
pub struct Schedule {
    config: ScheduleConfig,
    base_lr: f64,
    iterations: u64,
}

impl Schedule {
    /// The schedule of a run.
    pub fn new(config: &ScheduleConfig, base_lr: f64, iterations: u64) -> Self {
        Self { config: config.clone(), base_lr, iterations }
    }

    /// The learning rate of step `t`, from 0. With T iterations and w of warm-up:
    /// - poly (mmsegmentation): (base − min)·(1 − t/T)^power + min, during warm-up times 1 − (1 − t/w)(1 − ratio);
    /// - cosine: during warm-up linear from `warmup_lr` to the base, then min + (base − min)/2 · (1 + cos(π(t − w)/(T − w))).
    pub fn lr(&self, t: u64) -> f64 {
        let (step, total) = (t as f64, self.iterations as f64);
        match &self.config {
            ScheduleConfig::Poly(c) => {
                let lr = (self.base_lr - c.min_lr) * (1.0 - step / total).max(0.0).powf(c.power)
                    + c.min_lr;
                if t < c.warmup_iters {
                    lr * (1.0 - (1.0 - step / c.warmup_iters as f64) * (1.0 - c.warmup_ratio))
                } else {
                    lr
                }
            }
            ScheduleConfig::Cosine(c) => {
                let warmup = c.warmup_iters as f64;
                if t < c.warmup_iters {
                    return c.warmup_lr + (self.base_lr - c.warmup_lr) * step / warmup;
                }
                let share = ((step - warmup) / (total - warmup).max(1.0)).min(1.0);
                c.min_lr
                    + (self.base_lr - c.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CosineConfig, PolyConfig};

    #[test]
    fn poly_starts_at_the_warm_up_ratio_and_ends_near_the_minimum() {
        let config = PolyConfig { warmup_iters: 2, warmup_ratio: 0.1, ..PolyConfig::default() };
        let schedule = Schedule::new(&ScheduleConfig::Poly(config), 1.0, 4);
        // (1, 3/4, 1/2, 1/4) times (0.1, 0.55, 1, 1).
        for (t, expected) in [0.1, 0.4125, 0.5, 0.25].into_iter().enumerate() {
            assert!((schedule.lr(t as u64) - expected).abs() < 1e-12, "step {t}");
        }
    }

    #[test]
    fn cosine_meets_the_base_after_the_warm_up() {
        let config = CosineConfig { warmup_iters: 2, min_lr: 0.2, ..CosineConfig::default() };
        let schedule = Schedule::new(&ScheduleConfig::Cosine(config), 1.0, 6);
        for (t, expected) in [0.0, 0.5, 1.0].into_iter().enumerate() {
            assert!((schedule.lr(t as u64) - expected).abs() < 1e-12, "step {t}");
        }
        // Half way down: (1 + 0.2) / 2.
        assert!((schedule.lr(4) - 0.6).abs() < 1e-12);
    }
}
