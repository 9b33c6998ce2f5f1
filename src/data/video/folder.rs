//! A folder of images as a video: the frames in the order of their names.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::Result;
use crate::data::{list_images, read_image};

/// The frames of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    files: Vec<PathBuf>,
}

impl Folder {
    /// # Errors
    /// If the folder holds no image.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut files = list_images(path)?;
        files.sort_by(|a, b| by_numbers(&a.to_string_lossy(), &b.to_string_lossy()));
        Ok(Self { files: files.iter().map(|file| path.join(file)).collect() })
    }

    pub(super) fn frames(&self) -> usize {
        self.files.len()
    }

    pub(super) fn read(&self, wanted: &[usize]) -> Result<Vec<RgbImage>> {
        wanted.iter().map(|&frame| read_image(&self.files[frame])).collect()
    }
}

/// Runs of digits compare by value, so that `frame_2` comes before `frame_10`.
fn by_numbers(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a, b);
    loop {
        let (x, y) = (digits(a_rest), digits(b_rest));
        let order = match (x.is_empty(), y.is_empty()) {
            (false, false) => {
                let (p, q) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
                (a_rest, b_rest) = (&a_rest[x.len()..], &b_rest[y.len()..]);
                p.len().cmp(&q.len()).then(p.cmp(q))
            }
            _ => match (a_rest.chars().next(), b_rest.chars().next()) {
                (Some(p), Some(q)) => {
                    (a_rest, b_rest) = (&a_rest[p.len_utf8()..], &b_rest[q.len_utf8()..]);
                    p.cmp(&q)
                }
                (p, q) => return p.cmp(&q).then(a.cmp(b)),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn digits(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_digit).count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_by_value() {
        let mut names = ["f10.png", "f2.png", "f1.png", "f02b.png", "e3.png", "f.png", "f2"];
        names.sort_by(|a, b| by_numbers(a, b));
        assert_eq!(names, ["e3.png", "f.png", "f1.png", "f2", "f2.png", "f02b.png", "f10.png"]);
    }
}
