//! From single runs to rows: means over seeds, tasks and groups of tasks.

use anyhow::{Context, Result, ensure};
use rescatter::config::{VtabGroup, VtabTask};
use serde::Serialize;

use super::measure::{Figures, Measured};
use super::plan::{Job, Plan};

/// Everything that is written.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) base: String,
    /// The name of the score.
    pub(super) score: &'static str,
    pub(super) rows: Vec<Row>,
}

/// One method.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) method: String,
    /// Means over all runs; the score of a suite is the mean of its groups.
    #[serde(flatten)]
    pub(super) figures: Figures,
    /// The score of every run, seed by seed; those of a suite are the means of its groups.
    pub(super) scores: Vec<f64>,
    /// Standard deviation of the scores over the seeds; nothing with one seed.
    pub(super) spread: Option<f64>,
    /// Of a suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) suite: Option<SuiteScores>,
}

/// Scores of a suite, means over the seeds.
#[derive(Debug, Serialize)]
pub(super) struct SuiteScores {
    pub(super) tasks: Vec<(&'static str, f64)>,
    pub(super) groups: Vec<(VtabGroup, f64)>,
    /// Over all tasks alike, where the main score is the mean of the groups.
    pub(super) mean_of_tasks: f64,
}

impl Summary {
    /// Sorts the runs into the rows of `plan`.
    pub(super) fn new(plan: &Plan, runs: Vec<(Job, Measured)>) -> Result<Self> {
        let score = runs.first().context("nothing was compared")?.1.score;
        ensure!(runs.iter().all(|(_, run)| run.score == score), "the runs have different scores");
        let row = |(index, name): (usize, String)| {
            let own: Vec<_> = runs
                .iter()
                .filter(|(job, _)| job.method == index)
                .map(|(job, run)| (job.task, run.figures))
                .collect();
            Row::new(name, &own)
        };
        let names = plan.methods.iter().map(|method| method.name.clone()).enumerate();
        let rows = names.map(row).collect::<Result<_>>()?;
        Ok(Self { base: plan.base.display().to_string(), score, rows })
    }

    /// Replaces the time of an image, row by row: those of the runs were taken hours apart.
    pub(super) fn set_seconds_per_image(&mut self, seconds: &[f64]) {
        for (row, seconds) in self.rows.iter_mut().zip(seconds) {
            row.figures.seconds_per_image = *seconds;
        }
    }
}

impl Row {
    /// Of the runs of a method, task by task and in every task seed by seed.
    fn new(method: String, runs: &[(Option<VtabTask>, Figures)]) -> Result<Self> {
        let figures: Vec<Figures> = runs.iter().map(|(_, figures)| *figures).collect();
        let figures = Figures::mean(&figures).context("a method has no run")?;
        let of_task = |task: Option<VtabTask>| -> Vec<f64> {
            runs.iter().filter(|(of, _)| *of == task).map(|(_, f)| f.score).collect()
        };
        let (scores, suite) = match runs.first() {
            Some((Some(_), _)) => {
                let tasks = VtabTask::ALL.map(|task| (task, of_task(Some(task))));
                (by_seed(&tasks), Some(SuiteScores::new(&tasks)))
            }
            _ => (of_task(None), None),
        };
        let figures = Figures { score: mean(&scores), ..figures };
        Ok(Self { method, figures, spread: deviation(&scores), scores, suite })
    }
}

impl SuiteScores {
    fn new(tasks: &[(VtabTask, Vec<f64>)]) -> Self {
        let means: Vec<(VtabTask, f64)> =
            tasks.iter().map(|(task, scores)| (*task, mean(scores))).collect();
        let all: Vec<f64> = means.iter().map(|(_, score)| *score).collect();
        Self {
            tasks: means.iter().map(|(task, score)| (task.name(), *score)).collect(),
            groups: groups(&means),
            mean_of_tasks: mean(&all),
        }
    }
}

/// The mean score of every group.
fn groups(scores: &[(VtabTask, f64)]) -> Vec<(VtabGroup, f64)> {
    let of = |group: VtabGroup| {
        let members = scores.iter().filter(|(task, _)| task.group() == group);
        (group, mean(&members.map(|(_, score)| *score).collect::<Vec<_>>()))
    };
    [VtabGroup::Natural, VtabGroup::Specialized, VtabGroup::Structured].map(of).to_vec()
}

/// The mean of the groups for every seed.
fn by_seed(tasks: &[(VtabTask, Vec<f64>)]) -> Vec<f64> {
    let seeds = tasks.iter().map(|(_, scores)| scores.len()).min().unwrap_or(0);
    let of_seed = |seed: usize| {
        let scores: Vec<_> = tasks.iter().map(|(task, scores)| (*task, scores[seed])).collect();
        mean(&groups(&scores).into_iter().map(|(_, score)| score).collect::<Vec<_>>())
    };
    (0..seeds).map(of_seed).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Of a sample (n − 1); nothing for one value.
fn deviation(values: &[f64]) -> Option<f64> {
    let (n, mean) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(score: f64) -> Figures {
        Figures {
            score,
            backbone_parameters: 1.0,
            head_parameters: 2.0,
            gmacs_nominal: 3.0,
            gmacs_executed: 4.0,
            gmacs_share: 0.5,
            kept: 0.5,
            seconds_per_step: 0.1,
            seconds_per_image: 0.01,
        }
    }

    #[test]
    fn a_row_has_mean_and_spread_of_its_seeds() {
        let runs = [0.5, 0.6, 0.7].map(|score| (None, figures(score)));
        let row = Row::new("a".into(), &runs).unwrap();
        assert!(
            (row.figures.score - 0.6).abs() < 1e-12 && (row.spread.unwrap() - 0.1).abs() < 1e-12
        );
        assert_eq!(Row::new("a".into(), &runs[..1]).unwrap().spread, None);
    }

    #[test]
    fn a_suite_is_the_mean_of_its_groups() {
        // Natural 1, specialized 0.5, structured 0, the second seed 0.3 less.
        let score = |task: VtabTask| match task.group() {
            VtabGroup::Natural => 1.0,
            VtabGroup::Specialized => 0.5,
            VtabGroup::Structured => 0.0,
        };
        let runs: Vec<_> = VtabTask::ALL
            .iter()
            .flat_map(|task| [0.0, 0.3].map(|less| (Some(*task), figures(score(*task) - less))))
            .collect();
        let row = Row::new("a".into(), &runs).unwrap();
        assert!((row.scores[0] - 0.5).abs() < 1e-12 && (row.scores[1] - 0.2).abs() < 1e-12);
        let suite = row.suite.unwrap();
        // (7 · 1 + 4 · 0.5) / 19 − 0.15.
        assert!((suite.mean_of_tasks - (9.0 / 19.0 - 0.15)).abs() < 1e-12);
        assert!((suite.groups[1].1 - 0.35).abs() < 1e-12);
    }
}
