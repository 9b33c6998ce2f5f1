//! A run is a folder; this is what lies where, and who may write there.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::log::{JsonLog, Reached};
use crate::config::{Config, load};
use crate::fs::atomic_write;
use crate::{Error, Result};

/// Name of the log in a run's folder.
const LOG: &str = "log.jsonl";

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct Run {
    folder: PathBuf,
}

/// What a new training finds in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A finished or interrupted run is not touched.
    Fresh,
    /// A run of the same config is continued; without one, a new run begins.
    Resume,
}

impl Run {
    /// The run that a training of `config` will write to; nothing is written before `Run::begin`.
    ///
    /// # Errors
    /// If the folder holds a run and `start` is [`Start::Fresh`], or one of another config, or files of another kind, among
    /// them a config that no run wrote. A run that never reached a checkpoint is started over.
    pub fn claim<H>(folder: &Path, config: &Config<H>, start: Start) -> Result<Self>
    where
        H: Serialize + DeserializeOwned,
    {
        let run = Self { folder: folder.into() };
        if !run.last_path().exists() && !run.has_outcome() {
            run.check_replaceable::<H>()?;
            return Ok(run);
        }
        if start == Start::Fresh {
            return Err(Error::file(folder, "already holds a run")
                .with_hint("continue it with `--resume`, or name another folder with `--run`"));
        }
        match load::first_difference(&run.config()?, config)? {
            None => Ok(run),
            Some(difference) => {
                Err(Error::file(folder, format!("the run has another config: {difference}"))
                    .with_hint(
                        "resume with the run's own config, or start a new run in another folder",
                    ))
            }
        }
    }

    /// The config of the run that a training in `folder` would go on with; nothing where it begins anew.
    ///
    /// # Errors
    /// If there is a checkpoint, and the run's config cannot be read.
    pub fn resumed_config<H>(folder: &Path, start: Start) -> Result<Option<Config<H>>>
    where
        H: DeserializeOwned,
    {
        let run = Self { folder: folder.into() };
        match start {
            Start::Resume if run.last_path().exists() => run.config().map(Some),
            _ => Ok(None),
        }
    }

    /// Makes the folder, takes hold of its log (cut back to what is `reached`) and writes the resolved config.
    ///
    /// # Errors
    /// If the folder cannot be written or another process trains in it, or it holds what a run led to but not where it
    /// goes on.
    pub(super) fn begin(&self, config: &str, reached: Reached) -> Result<JsonLog> {
        if !self.last_path().exists() && self.has_outcome() {
            let what = "is missing, so that the run cannot be continued";
            return Err(Error::file(self.last_path(), what)
                .with_hint("start a new run in another folder with `--run`"));
        }
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        let log = JsonLog::open(&self.log_path(), reached)?;
        if !self.last_path().exists() {
            atomic_write(self.config_path(), config)?;
        }
        Ok(log)
    }

    /// A run that was trained before.
    ///
    /// # Errors
    /// If `folder` is not the folder of a run.
    pub fn open(folder: &Path) -> Result<Self> {
        let run = Self { folder: folder.into() };
        if run.config_path().is_file() {
            return Ok(run);
        }
        let reason = if folder.exists() {
            "is not the folder of a run: it has no config.yaml"
        } else {
            "does not exist"
        };
        Err(Error::file(folder, reason)
            .with_hint("`rescatter train CONFIG --run FOLDER` makes one"))
    }

    /// The resolved config of the run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config<H: DeserializeOwned>(&self) -> Result<Config<H>> {
        load::load(&self.config_path(), &[])
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `config.yaml`.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// `last.safetensors`: where training continues.
    pub fn last_path(&self) -> PathBuf {
        self.folder.join("last.safetensors")
    }

    /// `best.safetensors`: the weights with the best score.
    pub fn best_path(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// `log.jsonl`.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    /// `coco_instances_results.json`: what a detector found on the validation set, in COCO's results format.
    pub fn detections_path(&self) -> PathBuf {
        self.folder.join("coco_instances_results.json")
    }

    /// `videos.json`: what a video model said of each clip of the validation set.
    pub fn videos_path(&self) -> PathBuf {
        self.folder.join("videos.json")
    }

    /// `results.json`.
    pub fn results_path(&self) -> PathBuf {
        self.folder.join("results.json")
    }

    /// Whether a training wrote its best weights or its results.
    fn has_outcome(&self) -> bool {
        self.best_path().exists() || self.results_path().exists()
    }

    /// Refuses a folder without a checkpoint in which lies what no training wrote.
    fn check_replaceable<H: Serialize + DeserializeOwned>(&self) -> Result<()> {
        let path = self.config_path();
        if !path.exists() {
            if self.is_empty()? {
                return Ok(());
            }
            return Err(Error::file(&self.folder, "is neither empty nor the folder of a run")
                .with_hint("name another folder with `--run`"));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let resolved =
            load::parse::<H>(&text, &path, &[]).and_then(|config| load::to_yaml(&config));
        if resolved.is_ok_and(|resolved| resolved == text) {
            return Ok(());
        }
        Err(Error::file(path, "was not written by a run, which would replace it")
            .with_hint("name another folder with `--run`"))
    }

    /// Hidden files do not count: a killed process may leave a temporary one.
    fn is_empty(&self) -> Result<bool> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(Error::io("read", &self.folder, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("read", &self.folder, e))?;
            let name = entry.file_name();
            // What a process leaves that was killed before it wrote the config.
            let begun = name == LOG && entry.metadata().is_ok_and(|metadata| metadata.len() == 0);
            if !begun && !name.as_encoded_bytes().starts_with(b".") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    const TEXT: &str = "
task: segmentation
backbone: { arch: vit_s, patch_size: 14, pos_embed_grid: [37, 37] }
head: 1
data:
  train: { ade20k: { images: a, labels: b, classes: [x] } }
  val: { ade20k: { images: a, labels: b, classes: [x] } }
train: { iterations: 10, batch_size: 2 }
";

    fn config(overrides: &[&str]) -> Config<u8> {
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_string()).collect();
        parse(TEXT, Path::new("c.yaml"), &overrides).unwrap()
    }

    #[test]
    fn a_run_is_only_continued_on_request_and_with_its_own_config() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        let claim = |config: &Config<u8>, start| Run::claim(&folder, config, start);
        let run = claim(&config(&[]), Start::Fresh).unwrap();
        assert!(!folder.exists());
        drop(run.begin(&load::to_yaml(&config(&[])).unwrap(), Reached::default()).unwrap());
        // Without a checkpoint there is nothing to lose.
        assert!(claim(&config(&["seed=1"]), Start::Fresh).is_ok());
        let resumed = |start| Run::resumed_config::<u8>(&folder, start).unwrap();
        assert_eq!(resumed(Start::Resume), None);
        std::fs::write(run.last_path(), "").unwrap();
        assert_eq!((resumed(Start::Fresh), resumed(Start::Resume)), (None, Some(config(&[]))));
        let text = claim(&config(&[]), Start::Fresh).unwrap_err().to_string();
        assert!(text.contains("already holds a run"), "{text}");
        assert!(claim(&config(&[]), Start::Resume).is_ok());
        let text = claim(&config(&["seed=1"]), Start::Resume).unwrap_err().to_string();
        assert!(text.contains("`seed` was 0 and is now 1"), "{text}");
    }

    #[test]
    fn a_run_that_was_killed_before_its_config_was_written_begins_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LOG), "").unwrap();
        for start in [Start::Fresh, Start::Resume] {
            assert!(Run::claim(folder.path(), &config(&[]), start).is_ok());
        }
        std::fs::write(folder.path().join(LOG), "{}").unwrap();
        assert!(Run::claim(folder.path(), &config(&[]), Start::Fresh).is_err());
    }

    #[test]
    fn what_a_run_led_to_is_not_replaced_where_its_last_checkpoint_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let claim = |start| Run::claim(folder.path(), &config(&[]), start);
        let run = claim(Start::Fresh).unwrap();
        let text = load::to_yaml(&config(&[])).unwrap();
        drop(run.begin(&text, Reached::default()).unwrap());
        for outcome in [run.best_path(), run.results_path()] {
            std::fs::write(&outcome, "").unwrap();
            let refused = claim(Start::Fresh).unwrap_err().to_string();
            assert!(refused.contains("already holds a run"), "{refused}");
            let resumed = claim(Start::Resume).unwrap();
            let refused = resumed.begin(&text, Reached::default()).unwrap_err().to_string();
            assert!(refused.contains("last.safetensors: is missing"), "{refused}");
            std::fs::remove_file(outcome).unwrap();
        }
        assert!(claim(Start::Fresh).is_ok());
    }

    #[test]
    fn a_config_that_somebody_wrote_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.yaml"), TEXT).unwrap();
        for start in [Start::Fresh, Start::Resume] {
            let text = Run::claim(folder.path(), &config(&[]), start).unwrap_err().to_string();
            assert!(text.contains("config.yaml: was not written by a run"), "{text}");
        }
    }

    #[test]
    fn a_folder_of_something_else_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let text = Run::claim(folder.path(), &config(&[]), Start::Resume).unwrap_err().to_string();
        assert!(text.contains("neither empty nor the folder of a run"), "{text}");
        assert!(Run::open(folder.path()).unwrap_err().to_string().contains("no config.yaml"));
    }
}
