//! Scoring a model on a data set: one image at a time, so that memory does not grow with the set.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rescatter::config::EvalConfig;
use rescatter::data::coco::Detection;
use rescatter::data::{
    Dataset, Instances, LabelMap, Loader, LoaderOptions, Mode, Skipped, same_classes,
};
use rescatter::fs::atomic_write;
use rescatter::metrics::coco::CocoAp;
use rescatter::metrics::{ConfusionMatrix, SegmentationScores, TopK, TopKScores};
use rescatter::model::Model;
use rescatter::world::World;
use rescatter::{Error, Result, data};
use serde::Serialize;

use crate::detection::{self, DetectionScores, Detector};
use crate::kept::Kept;
use crate::segmentation::inference::Segmenter;
use crate::task::check_ignored_labels;
use crate::video::{VideoResult, averaged};
use crate::{ClassifierHead, Config, MaskRcnn, SegmentationHead, TaskModel, TemporalHead};

/// What an evaluation found; serialises to `results.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The task's scores.
    #[serde(flatten)]
    pub scores: Scores,
    /// Share of patch tokens that were worked on, over all layers with a dispatcher; 1 without any.
    pub kept: f64,
    /// The same per dispatcher, block by block (where a block has two, its attention's before its MLP's); empty without.
    pub kept_per_layer: Vec<f64>,
    /// How many images were scored.
    pub images: usize,
    /// Seconds that the model took per image, reading excluded; classification takes sixteen at once.
    pub seconds_per_image: f64,
    /// Seconds from the first image to the last, reading included.
    pub seconds: f64,
    /// Names of the classes, in the order of the lists of the scores.
    pub classes: Vec<String>,
    /// Samples that were left out because they are broken, by message.
    #[serde(skip_serializing_if = "Skipped::is_empty")]
    pub skipped: Skipped,
    /// What a detector found, in the ids of the annotation file: the content of a COCO results file.
    #[serde(skip)]
    pub detections: Vec<Detection>,
    /// What a video model said of each clip, in the order of the list.
    #[serde(skip)]
    pub videos: Vec<VideoResult>,
}

/// The scores of a task.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Scores {
    /// mIoU and its company.
    Segmentation(SegmentationScores),
    /// COCO's average precision.
    Detection(DetectionScores),
    /// Top-1 and top-5 accuracy.
    Classification(TopKScores),
}

impl Evaluation {
    /// Writes what a video model said of each clip as JSON, best classes first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_videos(&self, path: &Path) -> Result<()> {
        let content = serde_json::json!({ "classes": self.classes, "videos": self.videos });
        let text = serde_json::to_string_pretty(&content).map_err(Error::usage)?;
        atomic_write(path, text + "\n")
    }

    /// The numbers that are followed over a training, the most important first.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let scores = match &self.scores {
            Scores::Segmentation(s) => vec![("mIoU", s.mIoU), ("mAcc", s.mAcc), ("aAcc", s.aAcc)],
            Scores::Detection(s) => s.figures(),
            Scores::Classification(s) => {
                vec![("top1", s.top1), ("top5", s.top5), ("mean_class", s.mean_class)]
            }
        };
        let known = scores.into_iter().filter_map(|(name, score)| Some((name, score?)));
        known.chain([("kept", self.kept)]).collect()
    }
}

/// How an evaluation reads, looks and reports.
pub struct EvaluationOptions<'a> {
    /// Scales, mirroring, window.
    pub eval: &'a EvalConfig,
    /// Threads that read images.
    pub workers: usize,
    /// Told after each image how many are done and how many there are.
    pub progress: &'a dyn Fn(usize, usize),
    /// The processes that share the set; all of them get the scores of the whole.
    pub world: World,
}

impl EvaluationOptions<'_> {
    /// Says how far this process is, as if the others were as far.
    fn report(&self, images: usize, all: usize) {
        (self.progress)((images * self.world.size).min(all), all);
    }
}

impl TaskModel {
    /// Scores the model on the validation set of `config`.
    ///
    /// # Errors
    /// If the set does not have `classes`, an image cannot be read, or pixels that count nowhere have another label than in
    /// training.
    pub fn evaluate(
        &self,
        config: &Config,
        classes: &[String],
        world: World,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Evaluation> {
        let (eval, workers) = (&config.eval, config.data.workers);
        let options = EvaluationOptions { eval, workers, progress, world };
        match self {
            Self::Segmentation(model) => {
                check_ignored_labels(config)?;
                let set = data::segmentation_for_evaluation(&config.data.val)?;
                same_classes(("the model", classes), ("`data.val`", set.classes()))?;
                evaluate_segmentation(model, &set, &options)
            }
            Self::Detection(model) => {
                let set = data::detection_for_evaluation(&config.data.val)?;
                same_classes(("the model", classes), ("`data.val`", set.classes()))?;
                let ap = detection::collector(&config.data.val)?;
                evaluate_detection(model, &set, ap, &options)
            }
            Self::Video(model) => {
                let set = data::video_for_evaluation(&config.data.val)?;
                same_classes(("the model", classes), ("`data.val`", set.classes()))?;
                let frames = data::video::first_list(&config.data.val)?.frames;
                evaluate_video(model, &set, frames, &options)
            }
            Self::Classification(model) => {
                let set = data::classification_for_evaluation(&config.data.val)?;
                same_classes(("the model", classes), ("`data.val`", set.classes()))?;
                evaluate_classification(model, &set, &options)
            }
        }
    }
}

/// mIoU, mAcc and aAcc, each image at its own size. `set` gives labels as they are on disk.
///
/// # Errors
/// If an image cannot be read or does not fit the model.
pub fn evaluate_segmentation(
    model: &Model<SegmentationHead>,
    set: &Arc<dyn Dataset<Target = LabelMap>>,
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    let segmenter = Segmenter { model, config: options.eval };
    let mut matrix = ConfusionMatrix::new(set.classes().len(), model.head.labels().ignore_index);
    let mut tally = Tally::default();
    let mut loader = loader(set, options, 1)?;
    for batch in loader.by_ref() {
        let batch = batch?;
        let start = Instant::now();
        let found = segmenter.segment(&batch.images, &batch.metas[0])?;
        let prediction = found.labels(batch.metas[0].original);
        tally.add(start, &found.kept);
        matrix.add(&batch.targets[0], &prediction)?;
        options.report(tally.images, set.len());
    }
    let scores = options.world.merged(matrix, ConfusionMatrix::merge)?.scores();
    tally.finish(Scores::Segmentation(scores), set.classes(), loader.skipped(), options)
}

/// COCO's average precision of boxes and masks, each image at its own size; `ap` collects the detections.
///
/// # Errors
/// If an image cannot be read or does not fit the model, or `eval` asks for what a detector does not do.
pub fn evaluate_detection(
    model: &Model<MaskRcnn>,
    set: &Arc<dyn Dataset<Target = Instances>>,
    mut ap: CocoAp,
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    let detector = Detector::new(model, options.eval)?;
    let mut tally = Tally::default();
    let mut loader = loader(set, options, 1)?;
    for batch in loader.by_ref() {
        let batch = batch?;
        let start = Instant::now();
        let found = detector.detect(&batch.images, &batch.metas[0])?;
        let objects = detection::at_original(&found.detections);
        tally.add(start, &found.kept);
        let size = batch.metas[0].original;
        let objects = objects.iter().map(|object| object.detected(size));
        ap.add(&batch.metas[0].name, objects.collect::<Result<Vec<_>>>()?)?;
        options.report(tally.images, set.len());
    }
    ap.over_ranks(options.world)?;
    let boxes = DetectionScores::of_boxes(&ap)?;
    let scores = if model.head.has_masks() { boxes.with_masks(&ap)? } else { boxes };
    let scores = Scores::Detection(scores);
    let evaluation = tally.finish(scores, set.classes(), loader.skipped(), options)?;
    Ok(Evaluation { detections: ap.detections().to_vec(), ..evaluation })
}

/// Images per pass where their scores need little memory.
const CLASSIFIED_AT_ONCE: usize = 16;

/// Top-1, top-5 and the mean over classes.
///
/// # Errors
/// If an image cannot be read or does not fit the model.
pub fn evaluate_classification(
    model: &Model<ClassifierHead>,
    set: &Arc<dyn Dataset<Target = u32>>,
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    let mut hits = TopK::new(set.classes().len());
    let mut tally = Tally::default();
    let mut loader = loader(set, options, CLASSIFIED_AT_ONCE)?;
    for batch in loader.by_ref() {
        let batch = batch?;
        let start = Instant::now();
        let images = batch.images.to_device(model.params.device())?;
        let (logits, stats) = model.predict(&images, &batch.metas)?;
        let mut kept = Kept::default();
        kept.count(&stats)?;
        tally.add_batch(start, &kept, batch.metas.len());
        for (class, logits) in batch.targets.iter().zip(&logits) {
            hits.add(*class, logits)?;
        }
        options.report(tally.images, set.len());
    }
    let scores = Scores::Classification(options.world.merged(hits, TopK::merge)?.scores());
    tally.finish(scores, set.classes(), loader.skipped(), options)
}

/// Top-1, top-5 and the mean over classes; the logits of a video's views, clips of `frames` frames, are averaged.
///
/// # Errors
/// If a video cannot be read or does not fit the model.
pub fn evaluate_video(
    model: &Model<TemporalHead>,
    set: &Arc<dyn Dataset<Target = u32>>,
    frames: usize,
    options: &EvaluationOptions,
) -> Result<Evaluation> {
    let mut hits = TopK::new(set.classes().len());
    let mut tally = Tally::default();
    let mut videos = Vec::new();
    let mut loader = loader(set, options, 1)?;
    for batch in loader.by_ref() {
        let batch = batch?;
        let start = Instant::now();
        let (logits, kept) = averaged(model, &batch.images, frames, &batch.metas[0])?;
        tally.add(start, &kept);
        hits.add(batch.targets[0], &logits)?;
        let video = VideoResult::new(&batch.metas[0].name, batch.targets[0], &logits);
        videos.push((batch.samples[0], video));
        options.report(tally.images, set.len());
    }
    let scores = Scores::Classification(options.world.merged(hits, TopK::merge)?.scores());
    // Numbered as they stand in the list, of which every process read its share.
    let mut videos = options.world.gather(videos)?.concat();
    videos.sort_by_key(|(sample, _)| *sample);
    let videos = videos.into_iter().map(|(_, video)| video).collect();
    let evaluation = tally.finish(scores, set.classes(), loader.skipped(), options)?;
    Ok(Evaluation { videos, ..evaluation })
}

fn loader<T: Send + 'static>(
    set: &Arc<dyn Dataset<Target = T>>,
    options: &EvaluationOptions,
    batch_size: usize,
) -> Result<Loader<T>> {
    let options = LoaderOptions {
        batch_size,
        workers: options.workers,
        mode: Mode::Evaluate,
        world: options.world,
        ..LoaderOptions::default()
    };
    Loader::new(set.clone(), options)
}

/// What is counted beside the scores.
#[derive(Default)]
struct Tally {
    start: Option<Instant>,
    working: Duration,
    images: usize,
    kept: Kept,
}

impl Tally {
    /// One image that the model worked on since `start`.
    fn add(&mut self, start: Instant, kept: &Kept) {
        self.add_batch(start, kept, 1);
    }

    /// As many images as `images`, that the model worked on since `start`.
    fn add_batch(&mut self, start: Instant, kept: &Kept, images: usize) {
        self.start.get_or_insert(start);
        self.working += start.elapsed();
        self.images += images;
        self.kept.add(kept);
    }

    /// The evaluation of the whole set by all processes.
    fn finish(
        self,
        scores: Scores,
        classes: &[String],
        skipped: &Skipped,
        options: &EvaluationOptions,
    ) -> Result<Evaluation> {
        let own = (self.images, self.working.as_secs_f64(), self.kept, skipped.clone());
        let (images, working, kept, skipped) = options.world.merged(own, |all, part| {
            all.0 += part.0;
            all.1 += part.1;
            all.2.add(&part.2);
            part.3.iter().for_each(|(message, times)| {
                *all.3.entry(message.clone()).or_insert(0) += times;
            });
            Ok(())
        })?;
        Ok(Evaluation {
            scores,
            kept: kept.overall(),
            kept_per_layer: kept.per_layer(),
            images,
            seconds_per_image: working / images.max(1) as f64,
            seconds: self.start.map_or(0.0, |start| start.elapsed().as_secs_f64()),
            classes: classes.to_vec(),
            skipped,
            detections: Vec::new(),
            videos: Vec::new(),
        })
    }
}
