//! Objects of images: drawn, and as JSON.

use std::path::Path;

use anyhow::Result;
use image::Rgb;
use rescatter::data::coco::Rle;
use rescatter::draw::{self, Drawn};
use rescatter::{Error, data, fs};
use rescatter_heads::DetectionPredictor;
use rescatter_heads::detection::Object;
use serde_json::{Value, json};

use super::{Args, OPACITY, legend, make_folder, place, save};

/// Draws and writes what was detected.
pub(super) struct Writer<'a> {
    args: &'a Args,
    predictor: DetectionPredictor,
    palette: Vec<Rgb<u8>>,
}

impl<'a> Writer<'a> {
    /// Writes the legend, which is the same for all images.
    pub(super) fn new(args: &'a Args, predictor: DetectionPredictor) -> Result<Self> {
        args.refuse_maps()?;
        let palette = draw::palette(predictor.classes().len());
        let layers = predictor.dispatching_layers();
        save(&args.output.join("legend.png"), &legend(predictor.classes(), &palette, layers))?;
        Ok(Self { args, predictor, palette })
    }

    /// One image: `overlays/`, `detections/` and, of a model that dispatches, `tokens/`.
    pub(super) fn one(&self, name: &Path, path: &Path) -> Result<()> {
        let image = data::read_image(path)?;
        let found = self.predictor.predict(&image)?;
        let shown: Vec<Drawn> = found
            .objects
            .iter()
            .filter(|object| object.score >= self.args.score)
            .rev()
            .map(|object| self.drawn(object))
            .collect();
        let mut picture = image.clone();
        draw::objects(&mut picture, &shown);
        save(&place(self.args, "overlays", name, "png"), &picture)?;
        let json = place(self.args, "detections", name, "json");
        make_folder(&json)?;
        let size = (image.height(), image.width());
        let objects = found.objects.iter().map(|object| self.record(object, size));
        let record = json!({
            "image": path.display().to_string(),
            "height": size.0,
            "width": size.1,
            "detections": objects.collect::<rescatter::Result<Vec<_>>>()?,
        });
        fs::atomic_write(&json, serde_json::to_vec_pretty(&record)?)?;
        if let Some(map) = &found.token_map {
            let range = (0.0, self.predictor.dispatching_layers() as f32);
            let heat = draw::heat_map(&image, map, (1.0, 1.0), range, OPACITY);
            save(&place(self.args, "tokens", name, "png"), &heat)?;
        }
        Ok(())
    }

    fn name(&self, object: &Object) -> &str {
        &self.predictor.classes()[object.class as usize]
    }

    fn drawn<'o>(&self, object: &'o Object) -> Drawn<'o> {
        Drawn {
            bbox: object.bbox,
            mask: object.mask.as_ref(),
            colour: self.palette[object.class as usize],
            caption: format!("{} {:.2}", self.name(object), object.score),
        }
    }

    /// Box as (x, y, width, height) and mask as compressed runs, as in COCO's files.
    fn record(&self, object: &Object, size: (u32, u32)) -> rescatter::Result<Value> {
        let [x0, y0, x1, y1] = object.bbox;
        let mut record = json!({
            "class": object.class,
            "label": self.name(object),
            "score": object.score,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        });
        if let Some(mask) = &object.mask {
            let runs = Rle::from_instance(mask, size).map_err(Error::usage)?;
            record["segmentation"] =
                json!({ "size": [size.0, size.1], "counts": runs.to_compressed() });
        }
        Ok(record)
    }
}
