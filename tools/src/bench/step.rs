//! `rescatter bench --train`: whole training steps on noise.

use std::io::Write;

use anyhow::Result;
use candle_core::Tensor;
use ndarray::Array2;
use rescatter::data::{Batch, InstanceMask, Instances, LabelMap};
use rescatter::engine::step::{Moment, step_gradients};
use rescatter::engine::trainer::{peak_memory_bytes, resident_memory_bytes};
use rescatter::engine::{Optimizer, clip_scale, gradient_norm};
use rescatter::head::{Head, ImageMeta};
use rescatter::model::Model;
use rescatter::rng::{Purpose, Rng};
use rescatter::world::World;
use rescatter_heads::TaskModel;
use rescatter_heads::run::Trained;
use serde::Serialize;

use super::clock::Clock;
use super::forget_peak_memory;
use super::report::{Setting, Times, processor_ms};

/// Objects of an image of noise.
const OBJECTS: usize = 8;

/// What a training step costs.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    setting: Setting,
    #[serde(flatten)]
    times: Times,
    /// Of all threads together, the median.
    processor_ms: Option<f64>,
    images_per_second: f64,
    peak_memory_bytes: Option<u64>,
    /// The peak less what was in use before the first step.
    step_memory_bytes: Option<u64>,
    /// Share of the tokens that were worked on in the last step; `None` for the dense model.
    kept: Option<f64>,
}

/// Steps of one size.
pub(super) struct Bench<'a> {
    pub(super) trained: &'a Trained,
    pub(super) images: Tensor,
    /// Images or clips.
    pub(super) batch: usize,
    pub(super) size: (usize, usize),
    /// Timed steps, after one to warm up.
    pub(super) repeat: usize,
}

impl Bench<'_> {
    /// Times losses, gradients, clipping and update.
    pub(super) fn measure(self) -> Result<Report> {
        let (size, classes) = (self.size, self.trained.classes.len());
        let mut stream = Rng::new(1).stream(Purpose::Synthetic, 0, 0);
        let mut below = move |n: usize| (stream.uniform() * n as f64) as usize;
        match &self.trained.model {
            TaskModel::Segmentation(model) => {
                self.steps(model, || LabelMap::from_shape_fn(size, |_| below(classes) as u16))
            }
            TaskModel::Detection(model) => self.steps(model, || objects(size, classes, &mut below)),
            TaskModel::Video(model) => self.steps(model, || below(classes) as u32),
            TaskModel::Classification(model) => {
                self.steps(model, || (below(classes) as u32).into())
            }
        }
    }

    fn steps<H: Head>(
        &self,
        model: &Model<H>,
        mut target: impl FnMut() -> H::Target,
    ) -> Result<Report> {
        let config = &self.trained.config;
        let lr = config.optimizer.lr();
        let meta = ImageMeta {
            name: String::new(),
            original: self.size,
            input: self.size,
            flipped: false,
        };
        let batch = [Batch {
            images: self.images.clone(),
            targets: (0..self.batch).map(|_| target()).collect(),
            metas: vec![meta; self.batch],
            samples: (0..self.batch as u64).collect(),
        }];
        let mut optimizer = Optimizer::new(&config.optimizer, &model.params)?;
        let rng = Rng::new(config.seed);
        let before = resident_memory_bytes();
        forget_peak_memory();
        let (mut spent, mut kept) = (Vec::new(), None);
        for step in 0..=self.repeat as u64 {
            let clock = Clock::start(model.params.device())?;
            let moment =
                Moment { rng: &rng, step, progress: 0.0, loss_scale: 1.0, world: &World::SINGLE };
            let found = step_gradients(model, optimizer.parameters(), &batch, &moment)?;
            let norm = gradient_norm(&found.gradients)?;
            let scale = config.train.clip_norm.map_or(1.0, |max| clip_scale(norm, max));
            optimizer.step(&found.gradients, lr, scale)?;
            let passed = clock.stop()?;
            if step > 0 {
                spent.push(passed);
            }
            kept = found.kept;
        }
        let times = Times::of(&spent);
        let peak = peak_memory_bytes();
        Ok(Report {
            setting: Setting::new(self.size, self.batch, self.repeat),
            images_per_second: times.per_second(self.batch),
            processor_ms: processor_ms(&spent),
            times,
            peak_memory_bytes: peak,
            step_memory_bytes: peak.zip(before).map(|(peak, before)| peak.saturating_sub(before)),
            kept,
        })
    }
}

/// Rectangles that lie inside an image of `size`, with masks that fill them.
fn objects(
    (height, width): (usize, usize),
    classes: usize,
    below: &mut impl FnMut(usize) -> usize,
) -> Instances {
    let mut objects = Instances { size: (height, width), ..Instances::default() };
    for _ in 0..OBJECTS {
        let (rows, columns) = (height / 8 + below(height / 4), width / 8 + below(width / 4));
        let (top, left) = (below(height - rows), below(width - columns));
        objects.boxes.push([left, top, left + columns, top + rows].map(|v| v as f32));
        objects.classes.push(below(classes) as u32);
        let bitmap = Array2::ones((rows, columns));
        objects.masks.push(InstanceMask { origin: (top, left), bitmap });
    }
    objects
}

impl Report {
    pub(super) fn print_table(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        self.setting.print("step", "steps", &mut out)?;
        let mib = |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| (bytes >> 20).to_string());
        writeln!(
            out,
            "{:<14} {:>26} {:>12} {:>9} {:>10} {:>17}",
            "", "ms per step", "processor ms", "images/s", "peak MiB", "over start, MiB"
        )?;
        writeln!(
            out,
            "{:<14} {:>26} {:>12} {:>9.2} {:>10} {:>17}",
            "training step",
            self.times,
            self.processor_ms.map_or("-".into(), |ms| format!("{ms:.0}")),
            self.images_per_second,
            mib(self.peak_memory_bytes),
            mib(self.step_memory_bytes)
        )?;
        if let Some(kept) = self.kept {
            writeln!(out, "\nkept: {:.1} % of the patch tokens", 100.0 * kept)?;
        }
        Ok(())
    }
}
