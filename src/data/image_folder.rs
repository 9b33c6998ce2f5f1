//! Image classification from folders: one folder per class, its name is the class.

use std::path::PathBuf;

use super::transforms::{Frame, Pipeline};
use super::{Dataset, Sample, files, read_image};
use crate::config::{ImageFolderConfig, OnError};
use crate::rng::Stream;
use crate::{Error, Result};

/// A folder of class folders.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    /// Relative to `root`, and the class.
    images: Vec<(PathBuf, u32)>,
    classes: Vec<String>,
    on_error: OnError,
    pipeline: Pipeline,
}

impl ImageFolder {
    /// Lists the class folders and their images.
    ///
    /// # Errors
    /// If the folder is missing, a class has no folder or a folder is no class, the name of a folder is no UTF-8, or there is
    /// no image.
    pub fn new(config: &ImageFolderConfig, pipeline: Pipeline) -> Result<Self> {
        let files = files::list_images(&config.root)?;
        let top = |path: &PathBuf| {
            path.iter().next().filter(|_| path.iter().count() > 1).map(PathBuf::from)
        };
        if let Some(folder) = files.iter().filter_map(top).find(|top| top.to_str().is_none()) {
            return Err(Error::file(
                config.root.join(folder),
                "the name of this folder is no UTF-8",
            )
            .with_hint("rename it: the folder's name is the name of its class"));
        }
        let folder_of = |path: &PathBuf| Some(top(path)?.to_str()?.to_owned());
        let mut found: Vec<String> = files.iter().filter_map(folder_of).collect();
        found.sort();
        found.dedup();
        let classes = match &config.classes {
            Some(names) => files::class_names(names)?,
            None => found.clone(),
        };
        check_folders(config, &found, &classes)?;
        let class_of = |path: &PathBuf| {
            let folder = folder_of(path)?;
            classes.iter().position(|name| *name == folder).map(|class| class as u32)
        };
        let images = files
            .into_iter()
            .filter_map(|path| class_of(&path).map(|class| (path, class)))
            .collect();
        Ok(Self { root: config.root.clone(), images, classes, on_error: config.on_error, pipeline })
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.images[index].0)
    }

    /// The class of image `index`.
    pub fn class(&self, index: usize) -> u32 {
        self.images[index].1
    }
}

fn check_folders(config: &ImageFolderConfig, found: &[String], classes: &[String]) -> Result<()> {
    if found.is_empty() {
        return Err(Error::file(&config.root, "images lie here, but not in class folders")
            .with_hint("put each class's images in a folder of its name"));
    }
    if let Some(name) = classes.iter().find(|name| !found.contains(name)) {
        return Err(Error::file(&config.root, format!("class `{name}` has no folder with images"))
            .with_hint(format!("the folders are {}", found.join(", "))));
    }
    if let Some(folder) = found.iter().find(|folder| !classes.contains(folder)) {
        return Err(Error::file(config.root.join(folder), "this folder is none of the classes")
            .with_hint(format!("the classes are {}", classes.join(", "))));
    }
    Ok(())
}

impl Dataset for ImageFolder {
    type Target = u32;

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<u32>> {
        let (path, class) = &self.images[index];
        let image = read_image(self.root.join(path))?;
        let frame = Frame::new(image);
        let done = self.pipeline.apply(frame, path.display().to_string(), stream)?;
        Ok(Sample { image: done.image, target: *class, meta: done.meta })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.root.join(&self.images[index].0).display().to_string()
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.on_error
    }
}
