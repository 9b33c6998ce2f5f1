//! The rows as Markdown.

use std::fmt::Write;

use super::summary::{Row, Summary};

/// A table of costs and scores, and for a suite one of its tasks.
pub(super) fn markdown(summary: &Summary) -> String {
    let mut out = format!("Base config: `{}`\n\n", summary.base);
    let score = summary.score;
    line(
        &mut out,
        &[
            "method",
            score,
            "trained, backbone",
            "trained, head",
            "GMACs nominal",
            "GMACs executed",
            "of the dense",
            "kept",
            "s / step",
            "ms / image",
        ]
        .map(String::from),
    );
    rule(&mut out, 10);
    for row in &summary.rows {
        let f = &row.figures;
        line(
            &mut out,
            &[
                row.method.clone(),
                with_spread(row),
                millions(f.backbone_parameters),
                millions(f.head_parameters),
                format!("{:.3}", f.gmacs_nominal),
                format!("{:.3}", f.gmacs_executed),
                format!("{:.1} %", 100.0 * f.gmacs_share),
                format!("{:.3}", f.kept),
                format!("{:.3}", f.seconds_per_step),
                format!("{:.2}", 1e3 * f.seconds_per_image),
            ],
        );
    }
    if summary.rows.iter().any(|row| row.suite.is_some()) {
        out.push('\n');
        tasks(&mut out, summary);
    }
    out
}

/// Methods below each other, tasks and groups beside each other.
fn tasks(out: &mut String, summary: &Summary) {
    let mut head = true;
    for row in &summary.rows {
        let Some(suite) = &row.suite else { continue };
        if std::mem::take(&mut head) {
            let mut names = vec!["method".to_owned()];
            names.extend(suite.tasks.iter().map(|(task, _)| (*task).to_owned()));
            names.extend(suite.groups.iter().map(|(group, _)| format!("{group:?}")));
            names.extend(["mean of groups".to_owned(), "mean of tasks".to_owned()]);
            line(out, &names);
            rule(out, names.len());
        }
        let scores = suite.tasks.iter().map(|(_, score)| *score);
        let scores = scores.chain(suite.groups.iter().map(|(_, score)| *score));
        let scores = scores.chain([row.figures.score, suite.mean_of_tasks]);
        let mut cells = vec![row.method.clone()];
        cells.extend(scores.map(percent));
        line(out, &cells);
    }
}

fn line(out: &mut String, cells: &[String]) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn rule(out: &mut String, columns: usize) {
    let _ = writeln!(out, "|---{}|", "|---:".repeat(columns - 1));
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

fn with_spread(row: &Row) -> String {
    let spread = row.spread.map_or(String::new(), |spread| format!(" ± {}", percent(spread)));
    format!("{}{spread}", percent(row.figures.score))
}

fn millions(count: f64) -> String {
    format!("{:.3} M", count / 1e6)
}
