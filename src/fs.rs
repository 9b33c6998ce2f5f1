//! Files that are either the old one or the new one, never half of it.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Replace `path` by `bytes` at once.
///
/// # Errors
/// As [`atomic_write_with`].
pub fn atomic_write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    atomic_write_with(path.as_ref(), |file| file.write_all(bytes.as_ref()))
}

/// Replace `path` at once by what `fill` writes: into a temporary file in the same folder, synchronised, then renamed.
///
/// Whatever fails, the old file stays as it was and the temporary one is removed. One process at a time may write to a
/// path: the temporary file's name is fixed, so that a killed process leaves at most one behind, and the next one reuses it.
///
/// # Errors
/// If the folder cannot be written or the disk is full; the message names the file.
pub fn atomic_write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let temporary = temporary_path(path)?;
    let result = write_and_rename(path, &temporary, fill);
    if result.is_err() {
        // The first error is the one to report; a temporary file that was never created cannot be removed.
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(|error| write_error(path, error))
}

/// Finds out whether [`atomic_write`] could replace `path`, which stays as it is.
///
/// # Errors
/// If it is a folder, or its folder is missing or cannot be written.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "cannot be written: it is a folder"));
    }
    let temporary = temporary_path(path)?;
    let tried = File::create(&temporary).and_then(|_| std::fs::remove_file(&temporary));
    tried.map_err(|error| write_error(path, error))
}

fn write_and_rename(
    path: &Path,
    temporary: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
    fill(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(temporary, path)?;
    sync_folder(path)
}

/// The rename itself reaches the disk only with the folder's own entry.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// `folder/.name.tmp` for `folder/name`.
fn temporary_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    Ok(path.with_file_name(hidden))
}

fn write_error(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::file(path, format!("cannot be written: {error}"))
                .with_hint("free some space (or raise the file-size limit) and try again; the previous file is untouched")
        }
        ErrorKind::NotFound => Error::file(path, "cannot be written: its folder does not exist"),
        _ => Error::io("write", path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        atomic_write(&path, "one").unwrap();
        atomic_write(&path, "two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        atomic_write(&path, "one").unwrap();
        let error = atomic_write_with(&path, |file| {
            file.write_all(b"tw")?;
            Err(ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("a.json") && error.hint().is_some(), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_missing_folder_is_said_to_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let error = atomic_write(folder.path().join("no/a.json"), "x").unwrap_err();
        assert!(error.to_string().contains("folder does not exist"), "{error}");
        let error = check_writable(&folder.path().join("no/a.json")).unwrap_err();
        assert!(error.to_string().contains("folder does not exist"), "{error}");
    }

    #[test]
    fn asking_whether_a_file_can_be_written_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        check_writable(&path).unwrap();
        assert!(names(folder.path()).is_empty());
        std::fs::write(&path, "one").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert!(check_writable(folder.path()).unwrap_err().to_string().contains("it is a folder"));
    }
}
