//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::checkpoint::{
    self, BackboneFile, Best, Checkpoint, EarlierTask, Meta, Source, Thresholds,
};
use super::log::{JsonLog, Reached};
use super::progress::{Progress, human};
use super::run::Run;
use super::step::{Moment, StepGradients, step_gradients};
use super::tensorboard::EventWriter;
use super::window::Window;
use super::{Ema, LossScale, Optimizer, Schedule, clip_scale, gradient_norm};
use crate::config::{Config, Precision, TrainConfig, load};
use crate::data::Batch;
use crate::fs::atomic_write;
use crate::head::Head;
use crate::model::{Model, TrainedParts};
use crate::rng::Rng;
use crate::weights::checkpoint::Tensors;
use crate::world::World;
use crate::{Error, Result};

/// What an evaluation found.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    /// Named scores; the first decides which weights are the best (higher is better).
    pub scores: Vec<(String, f64)>,
    /// More of the same for `results.json`: per class, per layer.
    pub details: Map<String, Value>,
    /// Thresholds calibrated for the evaluated weights.
    pub thresholds: Vec<Thresholds>,
}

/// How a training ended.
#[derive(Debug)]
pub enum Outcome {
    /// All steps are done; the final evaluation.
    Finished(Evaluation),
    /// It was asked to stop; `--resume` goes on from here.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// A training in progress.
pub struct Trainer<'a, H> {
    model: &'a Model<H>,
    run: Run,
    config: TrainConfig,
    /// Steps in all.
    iterations: u64,
    schedule: Schedule,
    optimizer: Optimizer,
    ema: Option<Ema>,
    rng: Rng,
    world: World,
    meta: Meta,
}

impl<'a, H: Head> Trainer<'a, H> {
    /// A training of `model`, whose frozen weights are loaded, at its first step.
    ///
    /// # Errors
    /// If the backbone's file cannot be read, or the length is still given in epochs ([`Config::resolve_epochs`]).
    pub fn new<C: Serialize>(
        model: &'a Model<H>,
        run: Run,
        config: &Config<C>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let iterations = config.train.iterations.ok_or_else(|| {
            Error::usage("the length of the training is given in epochs of an unknown set")
                .with_hint(
                    "call `Config::resolve_epochs` with its number of samples and the processes",
                )
        })?;
        let meta = Meta {
            format: 1,
            step: 0,
            loss_scale: (config.train.precision == Precision::F16).then(LossScale::default),
            samples: Some(0),
            iterations,
            seed: config.seed,
            schedule: config.schedule.clone(),
            thresholds: Vec::new(),
            best: None,
            evaluated: None,
            backbone: BackboneFile::of(&config.backbone, &model.params)?,
            classes,
            earlier: Vec::new(),
            seconds: 0.0,
            config: load::to_yaml(config)?,
        };
        Ok(Self {
            model,
            run,
            config: config.train.clone(),
            iterations,
            schedule: Schedule::new(&config.schedule, config.optimizer.lr(), iterations),
            optimizer: Optimizer::new(&config.optimizer, &model.params)?,
            ema: config.train.ema.map(|decay| Ema::new(&model.params, decay)).transpose()?,
            rng: Rng::new(config.seed),
            world: World::SINGLE,
            meta,
        })
    }

    /// The same training shared with the other processes of `world`, each of which reads its own batches; the first writes.
    #[must_use]
    pub fn shared(mut self, world: World) -> Self {
        self.world = world;
        self
    }

    /// The same training of a task that is added to `earlier` ones.
    #[must_use]
    pub fn adding_to(mut self, earlier: Vec<EarlierTask>) -> Self {
        self.meta.earlier = earlier;
        self
    }

    /// Takes up the run's last checkpoint, if there is one.
    ///
    /// # Errors
    /// If it is damaged or another model's, or the frozen weights are not those that it was trained on.
    pub fn resume<C>(&mut self, config: &Config<C>) -> Result<()> {
        let path = self.run.last_path();
        if !path.exists() {
            return Ok(());
        }
        let found = Checkpoint::read(&path)?;
        found.check_backbone(&config.backbone)?;
        found.restore(&self.model.params, Source::Live)?;
        let misfit = |e: candle_core::Error| Error::file(&path, e);
        let moved = found.meta.step - found.meta.loss_scale.map_or(0, LossScale::skipped);
        self.optimizer.load_state(found.tensors(), moved).map_err(misfit)?;
        if let Some(ema) = &self.ema {
            ema.load_state(found.tensors()).map_err(misfit)?;
        }
        let Meta { config, backbone, classes, .. } = std::mem::replace(&mut self.meta, found.meta);
        self.meta = Meta { config, backbone, classes, ..self.meta.clone() };
        Ok(())
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.meta.step
    }

    /// Steps in all.
    pub fn iterations(&self) -> u64 {
        self.iterations
    }

    /// The number of the first sample that the next step reads: where the loader must begin.
    pub fn first_sample(&self) -> u64 {
        let per_step = (self.config.batch_size * self.config.accumulate) as u64;
        self.meta.samples.unwrap_or(self.meta.step * per_step)
    }

    /// Trains to the end on `batches` (endless, beginning at [`Self::first_sample`]), evaluating with `evaluate`; stops
    /// after the present step, with a checkpoint, once `stop` is set.
    ///
    /// # Errors
    /// If data, arithmetic, evaluation or writing fails, or a loss or gradient is not finite; the last checkpoint stays.
    pub fn run(
        &mut self,
        mut batches: impl Iterator<Item = Result<Batch<H::Target>>>,
        stop: &AtomicBool,
        mut evaluate: impl FnMut() -> Result<Evaluation>,
    ) -> Result<Outcome> {
        let leads = self.world.leads();
        let mut outputs = leads.then(|| Outputs::open(&self.run, &self.meta)).transpose()?;
        let mut evaluation = Evaluation::default();
        loop {
            let done = self.meta.step == self.iterations;
            // A resumed run makes up for an evaluation that was cut short; the last one is wanted for the results.
            if done || (self.evaluates() && self.meta.evaluated != Some(self.meta.step)) {
                evaluation = self.evaluate(&mut evaluate, outputs.as_mut())?;
            }
            if done {
                break;
            }
            let step = self.train_step(&mut batches, outputs.as_mut())?;
            let asked = self.asked_to_stop(stop)?;
            let last = step == self.iterations;
            if asked
                || last
                || self.evaluates()
                || step.is_multiple_of(self.config.checkpoint_every)
            {
                self.save_last()?;
            }
            if asked && !last {
                return Ok(Outcome::Interrupted { step });
            }
        }
        drop(outputs);
        self.write_results(&evaluation)?;
        Ok(Outcome::Finished(evaluation))
    }

    /// Whether any process was asked to stop.
    fn asked_to_stop(&self, stop: &AtomicBool) -> Result<bool> {
        let mut asked = [f64::from(u8::from(stop.load(Ordering::Relaxed)))];
        self.world.sum(&mut asked)?;
        Ok(asked[0] > 0.0)
    }

    /// Whether the present step is one after which the weights are evaluated.
    fn evaluates(&self) -> bool {
        let step = self.meta.step;
        step > 0
            && (step == self.iterations
                || self.config.eval_every.is_some_and(|n| step.is_multiple_of(n)))
    }

    fn train_step(
        &mut self,
        batches: &mut impl Iterator<Item = Result<Batch<H::Target>>>,
        outputs: Option<&mut Outputs>,
    ) -> Result<u64> {
        let start = Instant::now();
        let ended = || Error::usage("the training data came to an end");
        let group = (0..self.config.accumulate)
            .map(|_| batches.next().ok_or_else(ended)?)
            .collect::<Result<Vec<_>>>()?;
        let waited = start.elapsed();
        let lr = self.schedule.lr(self.meta.step);
        let progress = self.meta.step as f64 / self.iterations as f64;
        let loss_scale = self.meta.loss_scale.map_or(1.0, LossScale::factor);
        let moment = Moment {
            rng: &self.rng,
            step: self.meta.step,
            progress,
            loss_scale,
            world: &self.world,
        };
        let found = step_gradients(self.model, self.optimizer.parameters(), &group, &moment)?;
        let norm = gradient_norm(&found.gradients)? / loss_scale;
        if self.may_move(&found, norm, &group)? {
            let clip = self.config.clip_norm.map_or(1.0, |max| clip_scale(norm, max));
            self.optimizer.step(&found.gradients, lr, clip / loss_scale)?;
            if let Some(ema) = &self.ema {
                ema.update()?;
            }
        }
        let read = self.config.batch_size * self.config.accumulate * self.world.size;
        self.meta.samples = Some(self.first_sample() + read as u64);
        self.meta.step += 1;
        let spent = start.elapsed();
        self.meta.seconds += spent.as_secs_f64();
        if let Some(outputs) = outputs {
            outputs.window.add(&found, norm, [spent, waited]);
            outputs.window.loss_scale = self.meta.loss_scale.map(LossScale::factor);
            outputs.after_step(self.meta.step, lr, &self.config)?;
        }
        Ok(self.meta.step)
    }

    /// Whether the parameters may follow the gradients. Where only these are not finite, the loss scale is at fault as long as
    /// there is a smaller one; all processes find the same, because they have the same sums.
    fn may_move(
        &mut self,
        found: &StepGradients,
        norm: f64,
        batches: &[Batch<H::Target>],
    ) -> Result<bool> {
        if found.losses_are_finite()
            && !norm.is_finite()
            && let Some(scale) = &mut self.meta.loss_scale
            && scale.shrink()
        {
            return Ok(false);
        }
        self.check_finite(found, norm, batches)?;
        if let Some(scale) = &mut self.meta.loss_scale {
            scale.grow();
        }
        Ok(true)
    }

    fn check_finite(
        &self,
        found: &StepGradients,
        norm: f64,
        batches: &[Batch<H::Target>],
    ) -> Result<()> {
        let term = found.terms.iter().find(|(_, value)| !value.is_finite());
        let what = match term {
            Some((name, value)) => format!("the loss `{name}` is {value}"),
            None if !found.total.is_finite() => format!("the total loss is {}", found.total),
            None if !norm.is_finite() => {
                let parameters = self.optimizer.parameters().iter().zip(&found.gradients);
                let norm_of =
                    |g: &Option<_>| gradient_norm(std::slice::from_ref(g)).unwrap_or(f64::NAN);
                let first =
                    parameters.into_iter().find(|(_, gradient)| !norm_of(gradient).is_finite());
                let name = first
                    .map_or("all parameters together", |(parameter, _)| parameter.name.as_str());
                let scale =
                    if self.meta.loss_scale.is_some() { ", whatever the loss scale" } else { "" };
                format!("the gradient of `{name}` is not finite{scale}")
            }
            None => return Ok(()),
        };
        let metas = batches.iter().flat_map(|batch| &batch.metas);
        let names: Vec<String> = metas.map(|meta| meta.name.clone()).collect();
        let names = self.world.gather(names)?.concat();
        let step = self.meta.step + 1;
        let kept = if self.run.last_path().exists() {
            "the last checkpoint stays as it was"
        } else {
            "there is no checkpoint yet"
        };
        Err(Error::usage(format!(
            "training stopped at step {step}: {what} (images: {}); {kept}",
            names.join(", ")
        ))
        .with_hint(match self.config.precision {
            Precision::F16 => "`train.precision: bf16` reaches as far as f32; if that fails too, take a lower learning rate",
            _ => "a lower learning rate, a longer warm-up or `train.clip_norm` usually cures it",
        }))
    }

    fn evaluate(
        &mut self,
        evaluate: &mut impl FnMut() -> Result<Evaluation>,
        outputs: Option<&mut Outputs>,
    ) -> Result<Evaluation> {
        let start = Instant::now();
        if let Some(ema) = &self.ema {
            ema.swap()?;
        }
        let found = evaluate();
        if let Some(ema) = &self.ema {
            ema.swap()?;
        }
        let found = found?;
        self.meta.thresholds.clone_from(&found.thresholds);
        let step = self.meta.step;
        // A process that was killed before it wrote the results evaluates once more.
        let known = self.meta.evaluated.replace(step) == Some(step);
        let better = found.scores.first().filter(|(_, score)| {
            score.is_finite() && self.meta.best.as_ref().is_none_or(|best| *score > best.score)
        });
        if let Some((name, score)) = better {
            self.meta.best = Some(Best { name: name.clone(), score: *score, step });
            if self.world.leads() {
                let averages = self.ema.as_ref().map(Ema::state).unwrap_or_default();
                checkpoint::save(&self.run.best_path(), &self.model.params, averages, &self.meta)?;
            }
        }
        // The line comes first: a process that is killed in between makes the evaluation again and the line with it.
        if let (false, Some(outputs)) = (known, outputs) {
            outputs.after_evaluation(step, &found, start.elapsed())?;
        }
        self.save_last()?;
        Ok(found)
    }

    fn save_last(&self) -> Result<()> {
        if !self.world.leads() {
            return Ok(());
        }
        let mut beside: Tensors = self.optimizer.state();
        beside.extend(self.ema.as_ref().map(Ema::state).unwrap_or_default());
        checkpoint::save(&self.run.last_path(), &self.model.params, beside, &self.meta)
    }

    fn write_results(&self, evaluation: &Evaluation) -> Result<()> {
        if !self.world.leads() {
            return Ok(());
        }
        let mut results = scores_json(&evaluation.scores);
        results.extend(evaluation.details.clone());
        results.insert("step".into(), json!(self.meta.step));
        results.insert("best".into(), json!(self.meta.best));
        results.insert("trainable_parameters".into(), json!(self.model.trainable_count()));
        results.insert("trained".into(), json!(TrainedParts::of(&self.model.params)));
        results.insert("train_seconds".into(), json!(self.meta.seconds));
        results.insert("peak_memory_bytes".into(), json!(peak_memory_bytes()));
        let text = serde_json::to_string_pretty(&results).map_err(Error::usage)?;
        atomic_write(self.run.results_path(), text + "\n")
    }
}

/// Where a training reports to.
struct Outputs {
    log: JsonLog,
    events: EventWriter,
    progress: Progress,
    window: Window,
    iterations: u64,
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.progress.finish();
    }
}

impl Outputs {
    fn open(run: &Run, meta: &Meta) -> Result<Self> {
        Ok(Self {
            log: run.begin(&meta.config, Reached { step: meta.step, evaluated: meta.evaluated })?,
            events: EventWriter::create(run.folder(), meta.step)?,
            progress: Progress::new(meta.iterations, meta.step),
            window: Window::default(),
            iterations: meta.iterations,
        })
    }

    fn after_step(&mut self, step: u64, lr: f64, config: &TrainConfig) -> Result<()> {
        let line = || self.window.line();
        self.progress.step(step, line);
        if step.is_multiple_of(config.log_every) || step == self.iterations {
            self.progress.line(|| format!("step {step} · {}", line()));
            self.log.write(&self.window.row(step, lr))?;
            self.events.scalars(step, self.window.scalars(lr))?;
            self.window = Window::default();
        }
        Ok(())
    }

    fn after_evaluation(&mut self, step: u64, found: &Evaluation, time: Duration) -> Result<()> {
        let row = json!({ "step": step, "eval": scores_json(&found.scores), "eval_seconds": time.as_secs_f64() });
        self.log.write(&row)?;
        let tags: Vec<(String, f64)> =
            found.scores.iter().map(|(name, v)| (format!("eval/{name}"), *v)).collect();
        self.events.scalars(step, tags.iter().map(|(tag, value)| (tag.as_str(), *value)))?;
        let scores: Vec<String> =
            found.scores.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        self.progress.note(&format!("step {step}: {} ({})", scores.join(" · "), human(time)));
        Ok(())
    }
}

fn scores_json(scores: &[(String, f64)]) -> Map<String, Value> {
    scores.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

/// The most memory that this process ever held (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    memory_bytes("VmHWM:")
}

/// The memory that this process holds (Linux).
pub fn resident_memory_bytes() -> Option<u64> {
    memory_bytes("VmRSS:")
}

fn memory_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
