//! Reading JSON so that a complaint names the record.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads a JSON file; `shape` says what it should hold.
pub(super) fn read<T: DeserializeOwned>(path: &Path, shape: &str) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|error| complaint(path, &bytes, &error).with_hint(shape))
}

fn complaint(path: &Path, bytes: &[u8], error: &serde_json::Error) -> Error {
    let at = offset(bytes, error.line(), error.column());
    let record = record_around(bytes, at).map(|text| ids(&text)).unwrap_or_default();
    let of =
        if record.is_empty() { String::new() } else { format!(" (in the record with {record})") };
    let rest = &bytes[at.saturating_sub(1).min(bytes.len())..];
    let after = String::from_utf8_lossy(&rest[..rest.len().min(16)]).into_owned();
    let why = match ["NaN", "-Infinity", "Infinity"].iter().find(|word| after.starts_with(**word)) {
        Some(word) => {
            format!("{word} is not a number: line {}, column {}", error.line(), error.column())
        }
        None => error.to_string(),
    };
    Error::file(path, format!("{why}{of}"))
}

/// The place of a line and column, both from 1.
fn offset(bytes: &[u8], line: usize, column: usize) -> usize {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = std::iter::once(0).chain(ends).nth(line.saturating_sub(1)).unwrap_or(0);
    (start + column).min(bytes.len())
}

/// The innermost object around `at` that has an id of its own.
fn record_around(bytes: &[u8], at: usize) -> Option<String> {
    /// Longer records than this are searched in part.
    const REACH: usize = 1 << 16;
    let mut depth = 0i32;
    // The byte that was complained of may close the record.
    for start in (at.saturating_sub(REACH)..at.saturating_sub(1)).rev() {
        match bytes[start] {
            b'}' => depth += 1,
            b'{' if depth > 0 => depth -= 1,
            b'{' => {
                let text = object_at(bytes, start, REACH);
                if !ids(&text).is_empty() {
                    return Some(text);
                }
            }
            _ => {}
        }
    }
    None
}

/// The text of the object that opens at `start`, without the objects within it.
fn object_at(bytes: &[u8], start: usize, reach: usize) -> String {
    let mut depth = 0;
    let mut text = Vec::new();
    for byte in bytes[start..].iter().take(reach) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ if depth == 1 => text.push(*byte),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// `id 5, image_id 7`: the ids that the text of a record states.
fn ids(text: &str) -> String {
    let value = |key: &str| {
        let after = text.split_once(&format!("\"{key}\""))?.1.trim_start().strip_prefix(':')?;
        let end = after.find([',', '\n', ']']).unwrap_or(after.len());
        Some(format!("{key} {}", after[..end].trim()))
    };
    let found: Vec<String> =
        ["id", "image_id", "category_id"].into_iter().filter_map(value).collect();
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str, parts: &[&str]) {
        #[derive(Debug, serde::Deserialize)]
        struct Record {
            #[serde(rename = "bbox")]
            _bbox: [f64; 4],
        }
        let error = serde_json::from_str::<Vec<Record>>(text).unwrap_err();
        let message = complaint(Path::new("f.json"), text.as_bytes(), &error).to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is missing in: {message}");
        }
    }

    #[test]
    fn the_record_is_named_wherever_its_ids_stand() {
        says(
            r#"[{"image_id": 3, "bbox": [0, 0, 1, 1]}, {"image_id": 4, "bbox": [0, NaN, 1, 1], "x": {}}]"#,
            &["f.json", "NaN is not a number", "image_id 4)"],
        );
        says(
            "[{\"bbox\": [0, 0, 1],\n \"segmentation\": {\"size\": [1, 2]}, \"id\": 9, \"image_id\": 4}]",
            &["id 9, image_id 4", "length 3"],
        );
        says(r#"[{"image_id": 7, "category_id": 2}]"#, &["bbox", "image_id 7, category_id 2"]);
    }

    #[test]
    fn what_is_no_json_is_said_plainly() {
        says("no json", &["f.json", "line 1 column 2"]);
        says("", &["f.json", "EOF"]);
    }
}
