//! `rescatter train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rescatter::config::load;
use rescatter::data::coco::Detection;
use rescatter::data::{self, Batch, Dataset, Loader, LoaderOptions, Mixer, Mode};
use rescatter::engine::progress::bytes;
use rescatter::engine::trainer::peak_memory_bytes;
use rescatter::engine::{self, Outcome, Run, Start, Trainer};
use rescatter::head::Head;
use rescatter::metrics::coco::{self, IouType};
use rescatter::model::{Model, TrainedParts};
use rescatter::ops::in_precision;
use rescatter::world::World;
use rescatter_heads::cached::as_tokens;
use rescatter_heads::detection::{Detector, collector};
use rescatter_heads::extension::Base;
use rescatter_heads::run::device_of;
use rescatter_heads::{CachedFeatures, Config, MaskRcnn, TaskModel, calibration, task};
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
pub(crate) fn run(args: Args, world: World) -> anyhow::Result<ExitCode> {
    let config: Config = load::load(&args.config, &args.overrides)?;
    let start = if args.resume { Start::Resume } else { Start::Fresh };
    let outcome = train(config, (&args.run, start), world, process::stop_on_ctrl_c()?)?;
    if let Some(peak) = peak_memory_bytes() {
        tracing::info!("peak memory {}", bytes(peak));
    }
    Ok(match outcome {
        Outcome::Finished(_) => ExitCode::SUCCESS,
        Outcome::Interrupted { .. } => ExitCode::FAILURE,
    })
}

/// Trains the model of `config` in a folder until it is done or `stop` is set.
pub(crate) fn train(
    config: Config,
    folder: (&Path, Start),
    world: World,
    stop: &AtomicBool,
) -> anyhow::Result<Outcome> {
    in_precision(config.train.precision, || train_here(config, folder, world, stop))
}

fn train_here(
    mut config: Config,
    (folder, start): (&Path, Start),
    world: World,
    stop: &AtomicBool,
) -> anyhow::Result<Outcome> {
    let base = Base::open(&mut config)?;
    let begun = Run::resumed_config(folder, start)?;
    task::resolve_epochs(&mut config, world, begun.as_ref())?;
    let config = &config;
    let device = device_of(config)?;
    let run = Run::claim(folder, config, start)?;
    // The first process writes once all have looked at the folder.
    world.gather(())?;
    let classes = task::class_names(config)?;
    let earlier = base.as_ref().map_or(&[][..], Base::earlier);
    let (task, _) = TaskModel::added_to(earlier, config, classes.len(), &device)?;
    if let Some(base) = &base {
        base.hand_over(&task)?;
    }
    let session = Session { config, run, classes, task: &task, base, world, stop };
    match &task {
        TaskModel::Segmentation(model) => {
            // A validation set that is missing or has other classes is found before the training, not after it.
            session.check(data::segmentation_for_evaluation(&config.data.val)?.classes())?;
            task::check_ignored_labels(config)?;
            session.train(model, data::segmentation(&config.data.train)?)
        }
        TaskModel::Detection(model) => {
            session.check(data::detection_for_evaluation(&config.data.val)?.classes())?;
            session.check_detection(model)?;
            session.train(model, data::detection(&config.data.train)?)
        }
        TaskModel::Video(model) => {
            session.check(data::video_for_evaluation(&config.data.val)?.classes())?;
            session.train(model, data::video(&config.data.train)?)
        }
        TaskModel::Classification(model) => {
            session.check(data::classification_for_evaluation(&config.data.val)?.classes())?;
            let mixer = Mixer::new(config.data.mix, config.seed);
            let set = data::classification(&config.data.train)?;
            if config.train.cache_features {
                let set = Arc::new(CachedFeatures::compute(model, set, config.data.workers)?);
                return session.train_on(model, set, |batch| mixer.apply(as_tokens(batch)?));
            }
            session.train_on(model, set, |batch| mixer.apply(batch))
        }
    }
}

/// What a training needs whatever its task.
struct Session<'a> {
    config: &'a Config,
    run: Run,
    classes: Vec<String>,
    task: &'a TaskModel,
    base: Option<Base>,
    world: World,
    stop: &'a AtomicBool,
}

impl Session<'_> {
    fn check(&self, val: &[String]) -> rescatter::Result<()> {
        data::same_classes(("`data.train`", &self.classes), ("`data.val`", val))
    }

    /// Refuses a validation set, or a look at it, of which there would be no scores.
    fn check_detection(&self, model: &Model<MaskRcnn>) -> rescatter::Result<()> {
        Detector::new(model, &self.config.eval)?;
        let ap = collector(&self.config.data.val)?;
        if model.head.has_masks() {
            coco::check(ap.truth(), IouType::Segm)?;
        }
        Ok(())
    }

    fn train<H: Head>(
        &self,
        model: &Model<H>,
        set: Arc<dyn Dataset<Target = H::Target>>,
    ) -> anyhow::Result<Outcome>
    where
        H::Target: Send + 'static,
    {
        self.train_on(model, set, Ok)
    }

    /// Trains on what `prepare` makes of the batches of `set`.
    fn train_on<H: Head, T: Send + 'static>(
        &self,
        model: &Model<H>,
        set: Arc<dyn Dataset<Target = T>>,
        prepare: impl Fn(Batch<T>) -> rescatter::Result<Batch<H::Target>> + Sync,
    ) -> anyhow::Result<Outcome>
    where
        H::Target: Send,
    {
        // The last step is followed by a calibration, which is to find what it needs.
        if self.base.is_none() {
            calibration::check(self.task, self.config)?;
        }
        let earlier = self.base.as_ref().map_or(Vec::new(), |base| base.earlier().to_vec());
        let mut trainer = Trainer::new(model, self.run.clone(), self.config, self.classes.clone())?
            .adding_to(earlier)
            .shared(self.world);
        trainer.resume(self.config)?;
        let options = LoaderOptions {
            batch_size: self.config.train.batch_size,
            workers: self.config.data.workers,
            seed: self.config.seed,
            first_sample: trainer.first_sample(),
            mode: Mode::Train,
            world: self.world,
            ..LoaderOptions::default()
        };
        tracing::info!(
            "{} training images · {} · step {} of {}",
            set.len(),
            TrainedParts::of(&model.params),
            trainer.step(),
            trainer.iterations()
        );
        let mut loader = Loader::new(set, options)?;
        let batches = loader.by_ref().map(|batch| prepare(batch?));
        let outcome = data::ahead(batches, model.params.device(), |batches| {
            trainer.run(batches, self.stop, || self.evaluate())
        })?;
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
        Ok(outcome)
    }

    /// Calibrates the budgets on training images (but not those of a model that the task is added to), then scores the validation set.
    fn evaluate(&self) -> rescatter::Result<engine::Evaluation> {
        let thresholds = match &self.base {
            Some(base) => base.thresholds(),
            None => calibration::budgets(self.task, self.config)?,
        };
        let found = self.task.evaluate(self.config, &self.classes, self.world, &|_, _| {})?;
        if self.world.leads() && matches!(self.task, TaskModel::Detection(_)) {
            Detection::write_all(&self.run.detections_path(), &found.detections)?;
        }
        if self.world.leads() && matches!(self.task, TaskModel::Video(_)) {
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
