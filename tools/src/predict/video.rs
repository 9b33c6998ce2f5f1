//! Classes of videos over time, as JSON and as strips of frames.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use rescatter::{draw, fs};
use rescatter_heads::VideoPredictor;
use rescatter_heads::video::{Guess, VideoPrediction, Window, best};
use serde_json::{Value, json};

use super::{Args, OPACITY, make_folder, place, save};
use crate::pixels::Pixels;

/// Writes what was found in videos.
pub(super) struct Writer<'a> {
    args: &'a Args,
    predictor: VideoPredictor,
    pixels: Pixels,
}

impl<'a> Writer<'a> {
    /// `pixels` leads back from the model's input.
    pub(super) fn new(args: &'a Args, predictor: VideoPredictor, pixels: Pixels) -> Result<Self> {
        args.refuse_maps()?;
        Ok(Self { args, predictor, pixels })
    }

    /// One video: `classes/NAME.json` and `strips/NAME.png`, a row of frames per window and, of a model that dispatches, a
    /// row of token maps below it.
    pub(super) fn one(&self, name: &Path, path: &Path) -> Result<()> {
        let found = self.predictor.predict(path, self.args.windows)?;
        let windows: Vec<Value> =
            found.windows.iter().map(|window| self.record(window, &found)).collect();
        let record = json!({
            "video": path.display().to_string(),
            "frames": found.frames,
            "seconds": found.times.as_ref().and_then(|times| times.last()),
            "kept": found.kept.overall(),
            "top": self.named(&found.best()),
            "windows": windows,
        });
        let json = place(self.args, "classes", name, "json");
        make_folder(&json)?;
        fs::atomic_write(&json, serde_json::to_vec_pretty(&record)?)?;
        let mut rows = Vec::new();
        for window in &found.windows {
            rows.extend(self.rows(window)?);
        }
        save(&place(self.args, "strips", name, "png"), &draw::stack(&rows))
    }

    /// One window, with its first and last moment.
    fn record(&self, window: &Window, found: &VideoPrediction) -> Value {
        let moment = |frame: Option<&usize>| Some(*found.times.as_ref()?.get(*frame?)?);
        json!({
            "frames": window.frames,
            "start": moment(window.frames.first()),
            "end": moment(window.frames.last()),
            "top": self.named(&best(&window.logits)),
        })
    }

    fn named(&self, guesses: &[Guess]) -> Vec<Value> {
        let name = |guess: &Guess| {
            let Guess { class, probability } = *guess;
            json!({ "class": class, "label": self.name(class), "probability": probability })
        };
        guesses.iter().map(name).collect()
    }

    fn name(&self, class: u32) -> &str {
        &self.predictor.classes()[class as usize]
    }

    fn rows(&self, window: &Window) -> Result<Vec<RgbImage>> {
        let frames = self.pixels.of_clip(&window.input)?;
        let layers = self.predictor.dispatching_layers() as f32;
        let heat = |(frame, map): (&RgbImage, _)| {
            let map: &ndarray::Array2<f32> = map;
            let cell = (
                frame.height() as f32 / map.nrows() as f32,
                frame.width() as f32 / map.ncols() as f32,
            );
            draw::heat_map(frame, map, cell, (0.0, layers), OPACITY)
        };
        let maps: Vec<RgbImage> = frames.iter().zip(&window.token_maps).map(heat).collect();
        let caption: Vec<String> = best(&window.logits)
            .iter()
            .take(3)
            .map(|guess| format!("{} {:.2}", self.name(guess.class), guess.probability))
            .collect();
        let row = draw::contact_sheet(&[(draw::strip(&frames), caption.join(", "))], 1);
        let maps = (!maps.is_empty())
            .then(|| draw::contact_sheet(&[(draw::strip(&maps), String::new())], 1));
        Ok(std::iter::once(row).chain(maps).collect())
    }
}
