//! `rescatter train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use rescatter::config::load;
use rescatter::data::coco::Detection;
use rescatter::data::{self, Dataset, Loader, LoaderOptions, Mode};
use rescatter::engine::progress::bytes;
use rescatter::engine::trainer::peak_memory_bytes;
use rescatter::engine::{self, Outcome, Run, Start, Trainer};
use rescatter::head::Head;
use rescatter::model::Model;
use rescatter_heads::run::device;
use rescatter_heads::task::class_names;
use rescatter_heads::{Config, TaskModel, calibration};
use serde_json::Value;

use crate::process;

/// Arguments of `rescatter train`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The config of the run.
    config: PathBuf,
    /// The folder of the run; a finished or interrupted run in it is only touched with `--resume`.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Continue after the run's last checkpoint, bit for bit.
    #[arg(long)]
    resume: bool,
    /// Values that replace those of the config, e.g. `train.batch_size=8`.
    #[arg(value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

/// Runs `rescatter train`.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config: Config = load::load(&args.config, &args.overrides)?;
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    let run = Run::claim(&args.run, &config, start)?;
    let classes = class_names(&config)?;
    let device = device(&config.device)?;
    let task = TaskModel::new(&config, classes.len(), &device)?;
    let session = Session { config: &config, run, classes, task: &task };
    match &task {
        TaskModel::Segmentation(model) => {
            // A validation set that is missing or has other classes is found before the training, not after it.
            session.check(data::segmentation_for_evaluation(&config.data.val)?.classes())?;
            session.train(model, data::segmentation(&config.data.train)?)
        }
        TaskModel::Detection(model) => {
            session.check(data::detection_for_evaluation(&config.data.val)?.classes())?;
            session.train(model, data::detection(&config.data.train)?)
        }
        TaskModel::Video(model) => {
            session.check(data::video_for_evaluation(&config.data.val)?.classes())?;
            session.train(model, data::video(&config.data.train)?)
        }
        TaskModel::Classification(model) => {
            session.check(data::classification(&config.data.val)?.classes())?;
            session.train(model, data::classification(&config.data.train)?)
        }
    }
}

/// What a training needs whatever its task.
struct Session<'a> {
    config: &'a Config,
    run: Run,
    classes: Vec<String>,
    task: &'a TaskModel,
}

impl Session<'_> {
    fn check(&self, val: &[String]) -> rescatter::Result<()> {
        data::same_classes(("`data.train`", &self.classes), ("`data.val`", val))
    }

    fn train<H: Head>(
        &self,
        model: &Model<H>,
        set: Arc<dyn Dataset<Target = H::Target>>,
    ) -> anyhow::Result<ExitCode>
    where
        H::Target: Send + 'static,
    {
        let mut trainer = Trainer::new(model, self.run.clone(), self.config, self.classes.clone())?;
        trainer.resume(self.config)?;
        let options = LoaderOptions {
            batch_size: self.config.train.batch_size,
            workers: self.config.data.workers,
            seed: self.config.seed,
            first_sample: trainer.first_sample(),
            mode: Mode::Train,
            ..LoaderOptions::default()
        };
        tracing::info!(
            "{} training images · {} trained numbers · step {} of {}",
            set.len(),
            model.trainable_count(),
            trainer.step(),
            self.config.train.iterations
        );
        let mut loader = Loader::new(set, options)?;
        let stop = process::stop_on_ctrl_c()?;
        let outcome = trainer.run(&mut loader, stop, || self.evaluate())?;
        for (sample, times) in loader.skipped() {
            tracing::warn!("left out {times} times: {sample}");
        }
        let folder = self.run.folder().display();
        match outcome {
            Outcome::Finished(_) => tracing::info!("done: {folder}/results.json"),
            Outcome::Interrupted { step } => {
                tracing::warn!("stopped after step {step}; `--resume` goes on from there");
            }
        }
        if let Some(peak) = peak_memory_bytes() {
            tracing::info!("peak memory {}", bytes(peak));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Calibrates the budgets on training images, then scores the validation set.
    fn evaluate(&self) -> rescatter::Result<engine::Evaluation> {
        let thresholds = calibration::budgets(self.task, self.config)?;
        let found = self.task.evaluate(self.config, &self.classes, &|_, _| {})?;
        if matches!(self.task, TaskModel::Detection(_)) {
            Detection::write_all(&self.run.detections_path(), &found.detections)?;
        }
        if matches!(self.task, TaskModel::Video(_)) {
            found.write_videos(&self.run.videos_path())?;
        }
        let scores =
            found.figures().into_iter().map(|(name, score)| (name.into(), score)).collect();
        let Ok(Value::Object(details)) = serde_json::to_value(&found) else {
            return Err(rescatter::Error::usage("the scores have no JSON form"));
        };
        Ok(engine::Evaluation { scores, details, thresholds })
    }
}
