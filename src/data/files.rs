//! Finding files and reading lists of class names.

use std::path::{Path, PathBuf};

use crate::config::ClassNames;
use crate::{Error, Result};

const IMAGE_EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff"];

/// All images below `folder`, relative to it, sorted by name; hidden files are left out.
///
/// # Errors
/// If the folder is missing, unreadable or holds no image.
pub fn list_images(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = list_files(folder)?;
    let images: Vec<_> =
        files.into_iter().filter(|path| has_extension(path, &IMAGE_EXTENSIONS)).collect();
    if images.is_empty() {
        return Err(Error::file(folder, "the folder holds no images").with_hint(format!(
            "images end in {}",
            IMAGE_EXTENSIONS.map(|e| format!(".{e}")).join(", ")
        )));
    }
    Ok(images)
}

/// All files below `folder`, relative to it, sorted by name; hidden ones are left out.
pub(crate) fn list_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        let reason =
            if folder.exists() { "this is a file, not a folder" } else { "no such folder" };
        return Err(Error::file(folder, reason)
            .with_hint("check the path in the config; it is relative to where the command runs"));
    }
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let current = folder.join(&relative);
        for entry in std::fs::read_dir(&current).map_err(|e| Error::io("read", &current, e))? {
            let entry = entry.map_err(|e| Error::io("read", &current, e))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = relative.join(entry.file_name());
            // Links to folders are followed, as large sets are often linked together.
            let kind = entry.file_type().map_err(|e| Error::io("read", entry.path(), e))?;
            let is_folder = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
            if is_folder { open.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn has_extension(path: &Path, known: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| known.contains(&e.as_str()))
}

/// Labels are 16-bit numbers, one of which counts nowhere.
pub const MAX_CLASSES: usize = 65535;

/// The names of a list, or of a file with one name per line; blank lines and a table's heading are left out.
///
/// ADE20K's `objectInfo150.txt` is read as well: the name is the last of its tab-separated columns.
///
/// # Errors
/// If the file cannot be read, there is no name, a name occurs twice, or there are more than [`MAX_CLASSES`].
pub fn class_names(names: &ClassNames) -> Result<Vec<String>> {
    let too_many = |count: usize| format!("{count} classes are more than {MAX_CLASSES}");
    let (names, source) = match names {
        ClassNames::List(names) => (names.clone(), None),
        ClassNames::Count(count) if *count > MAX_CLASSES => {
            return Err(Error::usage(format!("`classes`: {}", too_many(*count))));
        }
        ClassNames::Count(count) => ((0..*count).map(|class| class.to_string()).collect(), None),
        ClassNames::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            (names_of_text(&text), Some(path))
        }
    };
    let fail = |reason: String| match source {
        Some(path) => Error::file(path, reason),
        None => Error::usage(format!("`classes`: {reason}")),
    };
    if names.is_empty() {
        return Err(fail("there is no class name".into()));
    }
    if names.len() > MAX_CLASSES {
        return Err(fail(too_many(names.len())));
    }
    let mut sorted: Vec<_> = names.iter().collect();
    sorted.sort();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fail(format!("the class `{}` occurs twice", pair[0])));
    }
    Ok(names)
}

fn names_of_text(text: &str) -> Vec<String> {
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let table = lines.clone().next().is_some_and(|first| first.starts_with("Idx\t"));
    lines
        .skip(usize::from(table))
        .map(|line| line.rsplit('\t').next().unwrap_or(line).trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_lines_and_from_ade20ks_table() {
        assert_eq!(names_of_text("sky\n\n road \r\n"), ["sky", "road"]);
        assert_eq!(
            names_of_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n"),
            ["wall"]
        );
    }

    #[test]
    fn a_class_that_occurs_twice_is_refused() {
        let error = class_names(&ClassNames::List(vec!["sky".into(), "sky".into()])).unwrap_err();
        assert_eq!(error.to_string(), "`classes`: the class `sky` occurs twice");
    }

    #[test]
    fn more_classes_than_labels_are_refused() {
        assert!(class_names(&ClassNames::Count(MAX_CLASSES)).is_ok());
        let error = class_names(&ClassNames::Count(usize::MAX)).unwrap_err();
        assert!(error.to_string().ends_with("classes are more than 65535"), "{error}");
    }
}
