//! Answers of classifiers, and of all tasks of an extended model, as JSON.

use std::path::Path;

use anyhow::Result;
use rescatter::data::{self, LabelMap};
use rescatter::fs;
use rescatter::metrics::best;
use rescatter_heads::tasks::{Answer, TasksPredictor};
use serde_json::{Map, Value, json};

use super::{Args, make_folder, place, save_labels};

/// Classes that are named with their probabilities, the most probable first.
const NAMED: usize = 5;

/// Writes what every task says.
pub(super) struct Writer<'a> {
    args: &'a Args,
    predictor: TasksPredictor,
}

impl<'a> Writer<'a> {
    pub(super) fn new(args: &'a Args, predictor: TasksPredictor) -> Result<Self> {
        args.refuse_maps()?;
        Ok(Self { args, predictor })
    }

    /// One image: `tasks/NAME.json` and, of a task that segments, `labels/NAME.png`.
    pub(super) fn one(&self, name: &Path, path: &Path) -> Result<()> {
        let image = data::read_image(path)?;
        let mut tasks = Vec::new();
        let answers = self.predictor.predict(&image)?;
        for (number, (answer, classes)) in answers.iter().zip(self.predictor.classes()).enumerate()
        {
            let mut section = match answer {
                Answer::Classification { logits, probabilities } => {
                    classification(logits, probabilities, classes)
                }
                Answer::Segmentation(labels) => {
                    let file = place(self.args, "labels", name, "png");
                    save_labels(&file, labels, (classes.len(), 0))?;
                    segmentation(labels, classes, &file)
                }
            };
            section.insert("task".into(), json!(number));
            tasks.push(Value::Object(section));
        }
        let file = place(self.args, "tasks", name, "json");
        make_folder(&file)?;
        let record = json!({ "image": path.display().to_string(), "tasks": tasks });
        Ok(fs::atomic_write(&file, serde_json::to_vec_pretty(&record)?)?)
    }
}

/// The most probable classes, and all logits.
pub(super) fn classification(
    logits: &[f32],
    probabilities: &[f32],
    classes: &[String],
) -> Map<String, Value> {
    let top = best(probabilities, NAMED).into_iter().map(|class| {
        json!({ "class": class, "label": classes[class], "probability": probabilities[class] })
    });
    let mut section = Map::new();
    section.insert("kind".into(), json!("classification"));
    section.insert("top".into(), top.collect());
    section.insert("logits".into(), json!(logits));
    section
}

/// The share of every class that occurs.
fn segmentation(labels: &LabelMap, classes: &[String], file: &Path) -> Map<String, Value> {
    let mut counts = vec![0usize; classes.len()];
    labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
    let share = |count: usize| count as f64 / labels.len().max(1) as f64;
    let shares: Map<String, Value> = classes
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .map(|(class, count)| (class.clone(), json!(share(count))))
        .collect();
    let mut section = Map::new();
    section.insert("kind".into(), json!("segmentation"));
    section.insert(
        "features".into(),
        json!(
            "shared: the maps of the model that the other tasks were added to, unchanged by them"
        ),
    );
    section.insert("labels".into(), json!(file.display().to_string()));
    section.insert("shares".into(), Value::Object(shares));
    section
}
