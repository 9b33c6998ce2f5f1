//! What a person sees while training runs: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The progress of a training.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// The progress of `iterations` steps of which `done` are behind.
    pub fn new(iterations: u64, done: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(iterations), ProgressDrawTarget::stderr())
            .with_position(done);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len} · {eta} left · {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        Self { bar, terminal }
    }

    /// After every step; `line` says how it goes.
    pub fn step(&self, step: u64, line: impl FnOnce() -> String) {
        if self.terminal {
            self.bar.set_message(line());
            self.bar.set_position(step);
        }
    }

    /// Something to be read later as well: printed above the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| tracing::info!("{text}"));
    }

    /// After every interval of the log: a line where there is no bar.
    pub fn line(&self, text: impl FnOnce() -> String) {
        if !self.terminal {
            tracing::info!("{}", text());
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `1 h 02 min`, `3 min 10 s` or `12 s`.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

/// `1.5 GiB`, `200 MiB`.
pub fn bytes(count: u64) -> String {
    let mib = count as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(200 << 20), "200 MiB");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_secs(12)), "12 s");
        assert_eq!(human(Duration::from_secs(190)), "3 min 10 s");
        assert_eq!(human(Duration::from_secs(3725)), "1 h 02 min");
    }
}
