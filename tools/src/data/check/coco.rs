//! What `data check` looks for in COCO's annotations: every record, every mask and every image.

use std::collections::BTreeSet;

use rayon::prelude::*;
use rescatter::config::{CocoConfig, OnError};
use rescatter::data::Dataset;
use rescatter::data::coco::{Annotations, CocoSet, Depth};
use rescatter::data::transforms::Pipeline;

use super::{Problem, Report};

/// Adds what is in a set, and what is wrong with it, to the report.
pub(super) fn walk(config: &CocoConfig, pipeline: Pipeline, report: &mut Report) {
    if let Err(error) = records(config, report).and_then(|()| images(config, pipeline, report)) {
        report.problems.push(error.into());
    }
}

fn records(config: &CocoConfig, report: &mut Report) -> rescatter::Result<()> {
    let file = Annotations::read(&config.annotations)?;
    for problem in file.problems(Depth::Pixels) {
        *report.faults.entry(problem.fault).or_insert(0) += 1;
        let message = format!("{}: {}", file.path.display(), problem.message);
        report.problems.push(Problem { message, hint: None });
    }
    Ok(())
}

fn images(config: &CocoConfig, pipeline: Pipeline, report: &mut Report) -> rescatter::Result<()> {
    // Every broken sample is reported, not only the first, and images without objects are looked at, too.
    let config = CocoConfig { on_error: OnError::Skip, filter_empty: false, ..config.clone() };
    let set = CocoSet::new(&config, pipeline)?;
    report.name_classes(set.classes());
    report.images += set.len();
    let read = |index: usize| {
        set.read(index).map(|image| (image.width() as usize, image.height() as usize))
    };
    let sizes: Vec<rescatter::Result<_>> = (0..set.len()).into_par_iter().map(read).collect();
    for (index, size) in sizes.into_iter().enumerate() {
        match size {
            Ok(size) => report.measure(size),
            Err(error) => report.problems.push(error.into()),
        }
        count(&set, index, report);
    }
    Ok(())
}

fn count(set: &CocoSet, index: usize, report: &mut Report) {
    let (_, objects) = set.records(index);
    let mut seen = BTreeSet::new();
    for object in objects {
        let class = set.categories().iter().position(|c| c.id == object.category_id);
        let Some(class) = class else { continue };
        if object.iscrowd {
            report.ignored += 1;
            continue;
        }
        report.classes[class].count += 1;
        if seen.insert(class) {
            report.classes[class].images += 1;
        }
    }
}
