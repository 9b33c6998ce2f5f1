//! What is compared: the file that `rescatter compare` reads, and the runs that follow from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rescatter::config::{VtabTask, load};
use rescatter::{Error, data};
use rescatter_heads::Config;
use serde::Deserialize;
use serde_yaml::Value;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// The config that all methods share; relative to where the command runs.
    pub(super) base: PathBuf,
    /// Seeds of a method that names none.
    #[serde(default = "one_seed")]
    seeds: Vec<u64>,
    /// In the order of the table.
    pub(super) methods: Vec<Method>,
}

/// A row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Method {
    pub(super) name: String,
    /// What differs from the base: values by their `key.path`.
    #[serde(default)]
    overrides: serde_yaml::Mapping,
    seeds: Option<Vec<u64>>,
}

/// One training.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// An index into the methods.
    pub(super) method: usize,
    pub(super) task: Option<VtabTask>,
    name: String,
    seed: u64,
    overrides: Vec<String>,
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

impl Plan {
    /// Reads and checks a plan.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let plan: Self = serde_yaml::from_str(&text).map_err(|e| Error::file(path, e))?;
        plan.check(path)?;
        Ok(plan)
    }

    fn check(&self, path: &Path) -> rescatter::Result<()> {
        let mut folders: Vec<String> = self.methods.iter().map(|m| folder(&m.name)).collect();
        if folders.is_empty() {
            return Err(Error::file(path, "`methods` is empty"));
        }
        folders.sort();
        if let Some(pair) = folders.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::file(
                path,
                format!("two methods would share the folder `{}`", pair[0]),
            )
            .with_hint("give them names that differ in letters or digits"));
        }
        if let Some(method) = self.methods.iter().find(|m| m.lines().len() < m.overrides.len()) {
            let name = &method.name;
            return Err(Error::file(
                path,
                format!("`{name}` has an override that is no key with a value"),
            ));
        }
        match self.methods.iter().find(|method| self.seeds(method).is_empty()) {
            Some(method) => Err(Error::file(path, format!("`{}` has no seed", method.name))),
            None => Ok(()),
        }
    }

    fn seeds<'a>(&'a self, method: &'a Method) -> &'a [u64] {
        method.seeds.as_deref().unwrap_or(&self.seeds)
    }

    /// Every method with every seed on every task; `overrides` are for all of them.
    pub(super) fn jobs(&self, tasks: &[Option<VtabTask>], overrides: &[String]) -> Vec<Job> {
        let mut jobs = Vec::new();
        for task in tasks {
            for (method, row) in self.methods.iter().enumerate() {
                for seed in self.seeds(row) {
                    let mut all = row.lines();
                    all.extend(overrides.iter().cloned());
                    if let Some(task) = task {
                        let key = |split| format!("data.{split}.vtab.task={}", task.name());
                        all.extend(["train", "val"].map(key));
                    }
                    all.push(format!("seed={seed}"));
                    let name = row.name.clone();
                    jobs.push(Job { method, task: *task, name, seed: *seed, overrides: all });
                }
            }
        }
        jobs
    }
}

impl Method {
    /// The overrides as a command line has them.
    fn lines(&self) -> Vec<String> {
        // A value in JSON is one in YAML, on one line.
        let line = |(key, value): (&Value, &Value)| {
            Some(format!("{}={}", key.as_str()?, serde_json::to_string(value).ok()?))
        };
        self.overrides.iter().filter_map(line).collect()
    }
}

impl Job {
    /// The folder of the run, below that of the comparison.
    pub(super) fn place(&self) -> PathBuf {
        let task = self.task.map_or(PathBuf::new(), |task| task.name().into());
        task.join(folder(&self.name)).join(format!("seed_{}", self.seed))
    }

    /// The config of the run; for a suite the lists must be there.
    pub(super) fn config(&self, plan: &Plan) -> Result<Config> {
        let named = || format!("the method `{}`", self.name);
        let config: Config = load::load(&plan.base, &self.overrides).with_context(named)?;
        if self.task.is_some() {
            data::classification(&config.data.train).with_context(named)?;
        }
        Ok(config)
    }
}

/// A name as a folder: what is neither letter nor digit becomes `_`.
fn folder(name: &str) -> String {
    let kept = |c: char| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let text: String = name.chars().map(kept).collect();
    text.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(methods: &str) -> rescatter::Result<Plan> {
        let text = format!("base: b.yaml\nseeds: [0, 1]\nmethods: {methods}");
        let plan: Plan = serde_yaml::from_str(&text).unwrap();
        plan.check("p.yaml".as_ref())?;
        Ok(plan)
    }

    #[test]
    fn every_method_seed_and_task_is_a_run_of_its_own() {
        let plan = plan(
            "[{ name: DyT r = 0.5 }, { name: LoRA, seeds: [7], overrides: { a.b: { c: [1, x] } } }]",
        );
        let plan = plan.unwrap();
        let places = |tasks: &[Option<VtabTask>]| -> Vec<String> {
            let jobs = plan.jobs(tasks, &["b=2".into()]).into_iter();
            jobs.map(|job| job.place().display().to_string()).collect()
        };
        assert_eq!(places(&[None]), ["dyt_r_0_5/seed_0", "dyt_r_0_5/seed_1", "lora/seed_7"]);
        assert_eq!(places(&[Some(VtabTask::Dtd)])[2], "dtd/lora/seed_7");
        let last = plan.jobs(&[Some(VtabTask::Dtd)], &["b=2".into()]).pop().unwrap();
        let task = ["data.train.vtab.task=dtd", "data.val.vtab.task=dtd"];
        assert_eq!(last.overrides, ["a.b={\"c\":[1,\"x\"]}", "b=2", task[0], task[1], "seed=7"]);
    }

    #[test]
    fn methods_that_would_share_a_folder_are_refused() {
        let message = plan("[{ name: a b }, { name: A-B }]").unwrap_err().to_string();
        assert!(message.contains("p.yaml: two methods would share the folder `a_b`"), "{message}");
        assert!(plan("[]").is_err());
    }
}
