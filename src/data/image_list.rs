//! Image classification from a text file: `path label` on each line, as VTAB-1K's published lists have it.

use std::path::{Path, PathBuf};

use super::transforms::{Frame, Pipeline};
use super::{Dataset, Sample, files, read_image};
use crate::config::{ClassNames, ImageListConfig, OnError, VtabConfig, VtabList};
use crate::rng::Stream;
use crate::{Error, Result};

/// The images of a list.
#[derive(Debug)]
pub struct ImageList {
    root: PathBuf,
    list: PathBuf,
    /// Relative to `root`.
    images: Vec<Entry>,
    classes: Vec<String>,
    on_error: OnError,
    pipeline: Pipeline,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    class: u32,
    /// Of the list, from 1.
    line: usize,
}

impl ImageList {
    /// Reads the list; the images are read one at a time.
    ///
    /// # Errors
    /// If the list cannot be read, is empty, or a line is not a path and a class's number.
    pub fn new(config: &ImageListConfig, pipeline: Pipeline) -> Result<Self> {
        let classes = files::class_names(&config.classes)?;
        let list = config.list.clone();
        let text = std::fs::read_to_string(&list).map_err(|e| Error::io("read", &list, e))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let images: Vec<Entry> = lines
            .map(|(number, line)| entry(&list, number + 1, line, classes.len()))
            .collect::<Result<_>>()?;
        if images.is_empty() {
            return Err(Error::file(&list, "the list names no image"));
        }
        let (root, on_error) = (config.root.clone(), config.on_error);
        Ok(Self { root, list, images, classes, on_error, pipeline })
    }

    /// The images of a VTAB-1K task.
    ///
    /// # Errors
    /// As [`ImageList::new`].
    pub fn vtab(config: &VtabConfig, pipeline: Pipeline) -> Result<Self> {
        let root = config.root.join(config.task.name());
        let list = root.join(match config.list {
            VtabList::Train800 => "train800.txt",
            VtabList::Val200 => "val200.txt",
            VtabList::Train800val200 => "train800val200.txt",
            VtabList::Test => "test.txt",
        });
        let classes = ClassNames::Count(config.task.classes());
        Self::new(&ImageListConfig { root, list, classes, on_error: OnError::Stop }, pipeline)
    }
}

/// The class is what follows the last space, so that paths may have spaces.
fn entry(list: &Path, line: usize, text: &str, classes: usize) -> Result<Entry> {
    let wrong = |reason: String| Error::file(list, format!("line {line}: {reason}"));
    let Some((path, label)) = text.trim().rsplit_once(char::is_whitespace) else {
        let reason = format!("expected `path label`, got `{}`", text.trim());
        return Err(wrong(reason));
    };
    let Ok(class) = label.parse::<u32>() else {
        return Err(wrong(format!("the label `{label}` is no number"))
            .with_hint("labels are the classes' numbers, counted from 0"));
    };
    if class as usize >= classes {
        return Err(wrong(format!("label {class} is outside the {classes} classes"))
            .with_hint("labels are counted from 0; check `classes`"));
    }
    Ok(Entry { path: path.trim_end().into(), class, line })
}

impl Dataset for ImageList {
    type Target = u32;

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<u32>> {
        let Entry { path, class, line } = &self.images[index];
        let image = read_image(self.root.join(path)).map_err(|error| {
            Error::file(&self.list, format!("line {line}: {error}"))
                .with_hint("paths in the list start in the folder `root`")
        })?;
        let done = self.pipeline.apply(Frame::new(image), path.display().to_string(), stream)?;
        Ok(Sample { image: done.image, target: *class, meta: done.meta })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.root.join(&self.images[index].path).display().to_string()
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.on_error
    }
}
