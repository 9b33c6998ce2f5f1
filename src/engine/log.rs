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

impl JsonLog {
    /// Opens the log and cuts it back to the lines of the first `step` steps; a line that a killed process left
    /// unfinished goes too.
    ///
    /// # Errors
    /// If the file cannot be written, or another process holds it.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
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
        let end = length_until(&file, step).map_err(|e| Error::io("read", path, e))?;
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

/// Bytes of the leading complete lines whose step is at most `step`.
fn length_until(file: &File, step: u64) -> std::io::Result<u64> {
    let (mut reader, mut end, mut line) = (BufReader::new(file), 0, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let row: Option<Value> =
            line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        match row.and_then(|row| row.get("step")?.as_u64()) {
            Some(at) if at <= step => end += length as u64,
            _ => return Ok(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reopening_cuts_back_to_the_step() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = JsonLog::open(&path, 0)?;
        for step in 1..=4 {
            log.write(&json!({ "step": step }))?;
        }
        log.file.write_all(b"{\"step\": 5, \"lo").unwrap();
        assert!(JsonLog::open(&path, 9).unwrap_err().to_string().contains("another process"));
        drop(log);
        let text = |step| -> Result<String> {
            drop(JsonLog::open(&path, step)?);
            Ok(std::fs::read_to_string(&path).unwrap())
        };
        assert_eq!(text(9)?.lines().count(), 4);
        assert_eq!(text(2)?, "{\"step\":1}\n{\"step\":2}\n");
        JsonLog::open(&path, 2)?.write(&json!({ "step": 3, "x": 1 }))?;
        assert_eq!(text(3)?.lines().last(), Some("{\"step\":3,\"x\":1}"));
        Ok(())
    }
}
