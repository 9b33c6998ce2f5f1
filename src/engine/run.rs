//! A run is a folder; this is what lies where, and who may write there.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, load};
use crate::fs::atomic_write;
use crate::{Error, Result};

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct Run {
    folder: PathBuf,
}

/// What a new training finds in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Only an empty or missing folder is taken.
    Fresh,
    /// A run of the same config is continued; without one, a new run begins.
    Resume,
}

impl Run {
    /// The run that a training of `config` writes to.
    ///
    /// # Errors
    /// If the folder is used and `start` is [`Start::Fresh`], or it holds a run of another config.
    pub fn create<H>(folder: &Path, config: &Config<H>, start: Start) -> Result<Self>
    where
        H: Serialize + DeserializeOwned,
    {
        let run = Self { folder: folder.into() };
        let used = !run.is_empty()?;
        if used && start == Start::Fresh {
            return Err(Error::file(folder, "the folder of the run is not empty")
                .with_hint("continue that run with `--resume`, or name another folder"));
        }
        if run.config_path().exists() {
            let known: Config<H> = run.config()?;
            if let Some(difference) = load::first_difference(&known, config)? {
                return Err(Error::file(
                    run.config_path(),
                    format!("the run has another config: {difference}"),
                )
                .with_hint(
                    "resume with the run's own config, or start a new run in another folder",
                ));
            }
            return Ok(run);
        }
        if used {
            return Err(Error::file(folder, "is not the folder of a run: it has no config.yaml"));
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        atomic_write(run.config_path(), load::to_yaml(config)?)?;
        Ok(run)
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
        self.folder.join("log.jsonl")
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
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
