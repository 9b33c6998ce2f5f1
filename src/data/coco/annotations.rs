//! COCO's `instances_*.json` as it is on disk.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use hotcoco::Segmentation;
use serde::Deserialize;

use super::json;
use super::rle::{Refused, Rle};
use crate::config::CocoConfig;
use crate::{Error, Result};

/// An annotation file: images, objects and categories with their own ids.
#[derive(Debug)]
pub struct Annotations {
    /// Where it was read.
    pub path: PathBuf,
    /// In the file's order.
    pub images: Vec<ImageRecord>,
    /// In the file's order.
    pub objects: Vec<ObjectRecord>,
    /// Sorted by id, so that the place is the class.
    pub categories: Vec<CategoryRecord>,
}

/// An image of an annotation file.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageRecord {
    /// Its id, by which objects and results refer to it.
    pub id: u64,
    /// Relative to the folder of images.
    pub file_name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// A category of an annotation file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CategoryRecord {
    /// Its id; ids may have gaps.
    pub id: u64,
    /// What people call it.
    pub name: String,
}

/// An annotated object (or crowd).
#[derive(Debug, Clone, Deserialize)]
pub struct ObjectRecord {
    /// Its id.
    pub id: u64,
    /// Its image's id.
    pub image_id: u64,
    /// Its category's id.
    pub category_id: u64,
    /// (x, y, width, height) in pixels.
    pub bbox: [f64; 4],
    /// Pixels; where the file has none, those of the mask, or else of the box.
    #[serde(default)]
    pub area: Option<f64>,
    /// Whether it stands for a group whose members cannot be told apart.
    #[serde(default, deserialize_with = "flag")]
    pub iscrowd: bool,
    /// Its pixels; `[]` is none.
    #[serde(default, deserialize_with = "pixels")]
    pub(crate) segmentation: Option<Segmentation>,
}

#[derive(Deserialize)]
struct File {
    images: Vec<ImageRecord>,
    annotations: Vec<ObjectRecord>,
    categories: Vec<CategoryRecord>,
}

/// `iscrowd` is 0 and 1 in most files and `true` and `false` in some.
fn flag<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Truth(bool),
        Number(f64),
    }
    Ok(match Flag::deserialize(from)? {
        Flag::Truth(truth) => truth,
        Flag::Number(number) => number != 0.0,
    })
}

/// Files of boxes alone often give every object an empty list of polygons.
fn pixels<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Option<Segmentation>, D::Error> {
    let given = Option::<Segmentation>::deserialize(from)?;
    Ok(given.filter(|given| !matches!(given, Segmentation::Polygon(list) if list.is_empty())))
}

impl Annotations {
    /// Reads the file; what it says is not judged, see [`Annotations::problems`].
    ///
    /// # Errors
    /// If the file cannot be read or is not COCO's JSON: the message names the record.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let File { images, annotations: objects, mut categories } = json::read(
            path,
            "COCO's annotations are an object with the lists `images`, `annotations` and `categories`",
        )?;
        categories.sort_by_key(|category| category.id);
        let file = Self { path: path.into(), images, objects, categories };
        let empty = |what: &str| Err(Error::file(&file.path, format!("`{what}` is empty")));
        if file.images.is_empty() {
            return empty("images");
        }
        if file.categories.is_empty() {
            return empty("categories");
        }
        Ok(file)
    }

    /// The file of `config`, with the images that it asks for.
    ///
    /// # Errors
    /// As [`Annotations::read`].
    pub fn of(config: &CocoConfig) -> Result<Self> {
        let mut file = Self::read(&config.annotations)?;
        if let Some(count) = config.first {
            let mut ids: Vec<u64> = file.images.iter().map(|image| image.id).collect();
            ids.sort_unstable();
            ids.truncate(count);
            file.images.retain(|image| ids.binary_search(&image.id).is_ok());
            file.objects.retain(|object| ids.binary_search(&object.image_id).is_ok());
        }
        Ok(file)
    }

    /// The categories' names in the order of the classes `0..K`, which is that of their ids.
    pub fn class_names(&self) -> Vec<String> {
        self.categories.iter().map(|category| category.name.clone()).collect()
    }

    /// The class of a category id.
    pub fn class_of(&self, category: u64) -> Option<u32> {
        self.categories.binary_search_by_key(&category, |c| c.id).ok().map(|class| class as u32)
    }

    /// The category id of a class.
    pub fn category_of(&self, class: u32) -> Option<u64> {
        self.categories.get(class as usize).map(|category| category.id)
    }

    /// Where the image of each id is in `images`.
    pub fn image_index(&self) -> HashMap<u64, usize> {
        self.images.iter().enumerate().map(|(index, image)| (image.id, index)).collect()
    }

    /// How many objects, crowds included, each category has.
    pub fn counts(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for object in &self.objects {
            *counts.entry(object.category_id).or_insert(0) += 1;
        }
        counts
    }
}

impl ObjectRecord {
    /// Whether it has pixels.
    pub fn has_mask(&self) -> bool {
        self.segmentation.is_some()
    }

    /// Its pixels in an image of `size` (height, width); `None` where the file gives none.
    ///
    /// # Errors
    /// If they are no mask of that size.
    pub fn mask(&self, size: (u32, u32)) -> Option<std::result::Result<Rle, Refused>> {
        self.segmentation.as_ref().map(|segmentation| mask_of(segmentation, size))
    }
}

/// The pixels of a segmentation in an image of `size` (height, width).
pub(crate) fn mask_of(
    segmentation: &Segmentation,
    size: (u32, u32),
) -> std::result::Result<Rle, Refused> {
    let same = |given: &[u32; 2]| match (given[0], given[1]) == size {
        true => Ok(size),
        false => Err(format!(
            "its mask is {}×{}, but its image {}×{}",
            given[1], given[0], size.1, size.0
        )),
    };
    match segmentation {
        Segmentation::Polygon(polygons) => Rle::from_polygons(size, polygons),
        Segmentation::CompressedRle { size, counts } => Rle::from_compressed(same(size)?, counts),
        Segmentation::UncompressedRle { size, counts } => {
            Rle::from_counts(same(size)?, counts.clone())
        }
        _ => Err("its segmentation is neither polygons nor runs".into()),
    }
}
