//! Means over the steps since the last line of the log.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::step::StepGradients;

/// Sums over an interval of steps.
#[derive(Debug, Default)]
pub(super) struct Window {
    steps: f64,
    terms: Vec<(&'static str, f64)>,
    total: f64,
    norm: f64,
    /// Steps whose gradients were finite; the others moved nothing.
    moved: f64,
    /// Of the next step, of a training in f16.
    pub(super) loss_scale: Option<f64>,
    kept: Option<f64>,
    spent: Duration,
    waited: Duration,
}

impl Window {
    /// Takes in one step, the time that it took and the part of it that was waiting for data.
    pub(super) fn add(&mut self, step: &StepGradients, norm: f64, [spent, waited]: [Duration; 2]) {
        if self.terms.is_empty() {
            self.terms = step.terms.iter().map(|(name, _)| (*name, 0.0)).collect();
        }
        for ((_, sum), (_, value)) in self.terms.iter_mut().zip(&step.terms) {
            *sum += value;
        }
        self.steps += 1.0;
        self.total += step.total;
        if norm.is_finite() {
            self.norm += norm;
            self.moved += 1.0;
        }
        self.kept = step.kept.map(|kept| self.kept.unwrap_or(0.0) + kept);
        self.spent += spent;
        self.waited += waited;
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let mut parts = vec![format!("loss {:.4}", self.mean(self.total))];
        parts.extend(self.terms.iter().map(|(name, sum)| format!("{name} {:.4}", self.mean(*sum))));
        parts.extend(self.kept.map(|kept| format!("kept {:.3}", self.mean(kept))));
        parts.push(format!("{:.2} it/s", self.rate()));
        parts.push(format!("data wait {:.0} %", 100.0 * self.wait_share()));
        parts.join(" · ")
    }

    /// For `log.jsonl`.
    pub(super) fn row(&self, step: u64, lr: f64) -> Value {
        let losses: Map<String, Value> = self
            .terms
            .iter()
            .map(|(name, sum)| ((*name).to_string(), json!(self.mean(*sum))))
            .collect();
        let mut row = json!({
            "step": step,
            "lr": lr,
            "losses": losses,
            "total": self.mean(self.total),
            "grad_norm": self.mean_norm(),
        });
        if let Some(scale) = self.loss_scale {
            row["loss_scale"] = json!(scale);
        }
        if let Some(kept) = self.kept {
            row["kept"] = json!(self.mean(kept));
        }
        row["it_per_s"] = json!(self.rate());
        row["data_wait"] = json!(self.wait_share());
        row
    }

    /// For TensorBoard.
    pub(super) fn scalars(&self, lr: f64) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![("lr", lr), ("total", self.mean(self.total))];
        scalars.extend(self.mean_norm().map(|norm| ("grad_norm", norm)));
        scalars.extend(self.loss_scale.map(|scale| ("loss_scale", scale)));
        scalars.extend(self.terms.iter().map(|(name, sum)| (*name, self.mean(*sum))));
        scalars.extend(self.kept.map(|kept| ("kept", self.mean(kept))));
        scalars.extend([("it_per_s", self.rate()), ("data_wait", self.wait_share())]);
        scalars
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.steps.max(1.0)
    }

    fn mean_norm(&self) -> Option<f64> {
        (self.moved > 0.0).then(|| self.norm / self.moved)
    }

    fn rate(&self) -> f64 {
        self.steps / self.spent.as_secs_f64().max(1e-9)
    }

    fn wait_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.spent.as_secs_f64().max(1e-9)
    }
}
