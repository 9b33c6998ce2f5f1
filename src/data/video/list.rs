//! List files: which clips there are, and their labels.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{ClassNames, VideoListConfig};
use crate::data::files;
use crate::{Error, Result};

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root.
    pub path: PathBuf,
    /// Its class.
    pub label: u32,
}

/// The names of the classes: as everywhere, or the keys of Something-Something's `labels.json` in the order
/// of their numbers.
///
/// # Errors
/// If they cannot be read.
pub fn class_names(config: &VideoListConfig) -> Result<Vec<String>> {
    match &config.classes {
        ClassNames::File(path) if is_json(path) => names_of_json(path),
        names => files::class_names(names),
    }
}

/// Every entry, or what is wrong with it, in the order of the file.
///
/// # Errors
/// If the file cannot be read or is empty.
pub fn read_list(config: &VideoListConfig, classes: &[String]) -> Result<Vec<Result<Entry>>> {
    let entries = if is_json(&config.file) {
        entries_of_json(config, classes)?
    } else {
        entries_of_lines(config, classes)?
    };
    if entries.is_empty() {
        return Err(Error::file(&config.file, "the list names no clip"));
    }
    Ok(entries)
}

fn is_json(path: &Path) -> bool {
    files::has_extension(path, &["json"])
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::file(path, e))
}

/// `path label`, split at the last comma or blank, so that paths may hold either.
fn entries_of_lines(config: &VideoListConfig, classes: &[String]) -> Result<Vec<Result<Entry>>> {
    let text = read_text(&config.file)?;
    let by_name: HashMap<&str, u32> =
        classes.iter().enumerate().map(|(i, name)| (name.as_str(), i as u32)).collect();
    let mut entries = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || (number == 0 && is_heading(line)) {
            continue;
        }
        let fail =
            |reason: String| Error::file(&config.file, format!("line {}: {reason}", number + 1));
        let Some((path, label)) = split(line) else {
            entries.push(Err(fail(format!("`{line}` is not `path label`")).with_hint(
                "each line names a clip and its label, with a blank or a comma between",
            )));
            continue;
        };
        let known = match label.parse::<u32>() {
            Ok(label) => Some(label).filter(|label| (*label as usize) < classes.len()),
            Err(_) => by_name.get(label).copied(),
        };
        entries.push(match known {
            Some(label) => Ok(Entry { path: path.into(), label }),
            None => Err(fail(format!(
                "the label `{label}` of `{path}` is none of the {} classes",
                classes.len()
            ))
            .with_hint("labels are numbers from 0, or names in `classes`")),
        });
    }
    Ok(entries)
}

fn split(line: &str) -> Option<(&str, &str)> {
    let (path, label) = line.rsplit_once(',').or_else(|| line.rsplit_once(char::is_whitespace))?;
    let (path, label) = (path.trim().trim_matches('"'), label.trim().trim_matches('"'));
    (!path.is_empty() && !label.is_empty()).then_some((path, label))
}

fn is_heading(line: &str) -> bool {
    split(line).is_some_and(|(_, label)| ["label", "class", "target"].contains(&label))
}

/// `{"Holding something": "3", …}`.
fn names_of_json(path: &Path) -> Result<Vec<String>> {
    let wrong = |reason: String| {
        Error::file(path, reason).with_hint("`labels.json` maps each name to its number")
    };
    let Value::Object(map) = read_json(path)? else {
        return Err(wrong("this is no map from names to numbers".into()));
    };
    let mut names = vec![None; map.len()];
    for (name, number) in &map {
        let number = number.as_str().map_or_else(|| number.as_u64(), |text| text.parse().ok());
        let slot = number.and_then(|number| names.get_mut(number as usize));
        match slot {
            Some(slot @ None) => *slot = Some(name.clone()),
            _ => {
                return Err(wrong(format!(
                    "`{name}` has no number of its own below {}",
                    map.len()
                )));
            }
        }
    }
    Ok(names.into_iter().flatten().collect())
}

/// `[{"id": "78687", "template": "Holding [something] next to [something]"}, …]`.
fn entries_of_json(config: &VideoListConfig, classes: &[String]) -> Result<Vec<Result<Entry>>> {
    let file = &config.file;
    let Value::Array(items) = read_json(file)? else {
        return Err(Error::file(file, "this is no list of clips")
            .with_hint("Something-Something's lists are arrays of `id` and `template`"));
    };
    let by_name: HashMap<&str, u32> =
        classes.iter().enumerate().map(|(i, name)| (name.as_str(), i as u32)).collect();
    let entry = |(number, item): (usize, &Value)| {
        let fail = |reason: String| Error::file(file, format!("entry {number}: {reason}"));
        let id = match &item["id"] {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => return Err(fail("there is no `id`".into())),
        };
        let Some(template) = item["template"].as_str() else {
            return Err(fail(format!("clip {id} has no `template`"))
                .with_hint("the test set's list has no labels; evaluate on `validation.json`"));
        };
        let name = template.replace(['[', ']'], "");
        let Some(&label) = by_name.get(name.as_str()) else {
            return Err(fail(format!("the template `{template}` of clip {id} is no class")));
        };
        Ok(Entry { path: format!("{id}.{}", config.extension).into(), label })
    };
    Ok(items.iter().enumerate().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_the_last_comma_or_blank() {
        assert_eq!(split("a b/c d.mp4 12"), Some(("a b/c d.mp4", "12")));
        assert_eq!(split("a b.mp4,12"), Some(("a b.mp4", "12")));
        assert_eq!(split("\"a, b.mp4\",\"12\""), Some(("a, b.mp4", "12")));
        assert_eq!(split("a.mp4\t3"), Some(("a.mp4", "3")));
        assert_eq!(split("a.mp4"), None);
        assert_eq!(split("a.mp4,"), None);
        assert!(is_heading("path,label") && !is_heading("label.mp4 0"));
    }
}
