//! `log.jsonl`: one JSON object per line, each with the key `step`.

use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// The open log of a run; it also keeps a second process out of the folder.
#[derive(Debug)]
pub struct JsonLog {
    path: PathBuf,
    file: File,
}

/// What a checkpoint has behind it, and so what of a log stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Steps of training.
    pub step: u64,
    /// The step of its last evaluation.
    pub evaluated: Option<u64>,
}

impl Reached {
    /// An evaluation's line is written before the checkpoint that knows of it; without that checkpoint it is made again.
    fn covers(self, row: &Value) -> bool {
        match row.get("step").and_then(Value::as_u64) {
            Some(at) if at == self.step && row.get("eval").is_some() => self.evaluated == Some(at),
            Some(at) => at <= self.step,
            None => false,
        }
    }
}

impl JsonLog {
    /// Opens the log and cuts it back to what is `reached`; a line that a killed process left unfinished goes too.
    ///
    /// # Errors
    /// If the file cannot be written, or another process holds it.
    pub fn open(path: &Path, reached: Reached) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(|e| Error::io("open", path, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "another process is training in this folder"));
            }
            // Some network file systems have no locks; the run goes on without.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let end = length_until(&file, reached).map_err(|e| Error::io("read", path, e))?;
        file.set_len(end).map_err(|e| Error::io("write", path, e))?;
        file.seek(SeekFrom::End(0)).map_err(|e| Error::io("write", path, e))?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        let line = format!("{row}\n");
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Bytes of the leading complete lines that are `reached`.
fn length_until(file: &File, reached: Reached) -> std::io::Result<u64> {
    let (mut reader, mut end, mut line) = (BufReader::new(file), 0, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let row: Option<Value> =
            line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        match row {
            Some(row) if reached.covers(&row) => end += length as u64,
            _ => return Ok(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn until(step: u64) -> Reached {
        Reached { step, evaluated: None }
    }

    #[test]
    fn an_evaluation_stays_if_its_checkpoint_was_written() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = JsonLog::open(&path, Reached::default())?;
        log.write(&json!({ "step": 2, "lr": 0.1 }))?;
        log.write(&json!({ "step": 2, "eval": {} }))?;
        drop(log);
        let lines = |reached| -> Result<usize> {
            drop(JsonLog::open(&path, reached)?);
            Ok(std::fs::read_to_string(&path).unwrap().lines().count())
        };
        assert_eq!(lines(Reached { step: 2, evaluated: Some(2) })?, 2);
        assert_eq!(lines(Reached { step: 3, evaluated: None })?, 2);
        assert_eq!(lines(Reached { step: 2, evaluated: Some(1) })?, 1);
        Ok(())
    }

    #[test]
    fn reopening_cuts_back_to_the_step() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = JsonLog::open(&path, until(0))?;
        for step in 1..=4 {
            log.write(&json!({ "step": step }))?;
        }
        log.file.write_all(b"{\"step\": 5, \"lo").unwrap();
        assert!(
            JsonLog::open(&path, until(9)).unwrap_err().to_string().contains("another process")
        );
        drop(log);
        let text = |step| -> Result<String> {
            drop(JsonLog::open(&path, until(step))?);
            Ok(std::fs::read_to_string(&path).unwrap())
        };
        assert_eq!(text(9)?.lines().count(), 4);
        assert_eq!(text(2)?, "{\"step\":1}\n{\"step\":2}\n");
        JsonLog::open(&path, until(2))?.write(&json!({ "step": 3, "x": 1 }))?;
        assert_eq!(text(3)?.lines().last(), Some("{\"step\":3,\"x\":1}"));
        Ok(())
    }
}
