//! Classes of images: written below the picture, and as JSON.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use rescatter::{data, draw, fs};
use rescatter_heads::ClassPredictor;
use rescatter_heads::classification::Classified;
use serde_json::{Value, json};

use super::tasks::classification;
use super::{Args, OPACITY, make_folder, place, save};

/// Classes that are written below the picture.
const LISTED: usize = 5;

/// Pictures are enlarged to about this width, so that their caption has room.
const WIDTH: u32 = 192;

/// Draws and writes what was classified.
pub(super) struct Writer<'a> {
    args: &'a Args,
    predictor: ClassPredictor,
}

impl<'a> Writer<'a> {
    /// Writes the legend of the token maps, if there are any.
    pub(super) fn new(args: &'a Args, predictor: ClassPredictor) -> Result<Self> {
        args.refuse_maps()?;
        let layers = predictor.dispatching_layers();
        if layers > 0 {
            let legend = draw::heat_legend((0.0, layers as f32), "layers that worked on a patch");
            save(&args.output.join("legend.png"), &legend)?;
        }
        Ok(Self { args, predictor })
    }

    /// One image: `overlays/`, `tasks/` and, of a model that dispatches, `tokens/`.
    pub(super) fn one(&self, name: &Path, path: &Path) -> Result<()> {
        let image = data::read_image(path)?;
        let found = self.predictor.predict(&image)?;
        let captions: Vec<String> = found
            .best(LISTED)
            .into_iter()
            .map(|(class, share)| format!("{:5.1} % {}", 100.0 * share, self.name(class)))
            .collect();
        let picture = draw::stack(&[enlarged(&image), draw::lines(&captions)]);
        save(&place(self.args, "overlays", name, "png"), &picture)?;
        let json = place(self.args, "tasks", name, "json");
        make_folder(&json)?;
        fs::atomic_write(&json, serde_json::to_vec_pretty(&self.record(path, &found))?)?;
        if let Some(map) = &found.token_map {
            let range = (0.0, self.predictor.dispatching_layers() as f32);
            let heat = draw::heat_map(&image, map, (1.0, 1.0), range, OPACITY);
            save(&place(self.args, "tokens", name, "png"), &enlarged(&heat))?;
        }
        Ok(())
    }

    fn name(&self, class: usize) -> &str {
        &self.predictor.classes()[class]
    }

    /// As that of an extended model, with one task.
    fn record(&self, path: &Path, found: &Classified) -> Value {
        let classes = self.predictor.classes();
        let mut section = classification(&found.logits, &found.probabilities, classes);
        section.insert("task".into(), json!(0));
        json!({
            "image": path.display().to_string(),
            "tasks": [section],
            "kept": found.kept.overall(),
        })
    }
}

/// A small picture with every pixel repeated.
fn enlarged(image: &RgbImage) -> RgbImage {
    let factor = (WIDTH / image.width().max(1)).max(1);
    resize(image, image.width() * factor, image.height() * factor, FilterType::Nearest)
}
