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
    /// If the folder holds a run and `start` is [`Start::Fresh`], or one of another config, or files of another kind. A run
    /// that never reached a checkpoint is started over.
    pub fn claim<H>(folder: &Path, config: &Config<H>, start: Start) -> Result<Self>
    where
        H: Serialize + DeserializeOwned,
    {
        let run = Self { folder: folder.into() };
        if !run.last_path().exists() {
            if run.config_path().exists() || run.is_empty()? {
                return Ok(run);
            }
            return Err(Error::file(folder, "is neither empty nor the folder of a run")
                .with_hint("name another folder with `--run`"));
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

    /// Makes the folder, takes hold of its log (cut back to what is `reached`) and writes the resolved config.
    ///
    /// # Errors
    /// If the folder cannot be written or another process trains in it.
    pub(super) fn begin(&self, config: &str, reached: Reached) -> Result<JsonLog> {
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
        std::fs::write(run.last_path(), "").unwrap();
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
    fn a_folder_of_something_else_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let text = Run::claim(folder.path(), &config(&[]), Start::Resume).unwrap_err().to_string();
        assert!(text.contains("neither empty nor the folder of a run"), "{text}");
        assert!(Run::open(folder.path()).unwrap_err().to_string().contains("no config.yaml"));
    }
}
