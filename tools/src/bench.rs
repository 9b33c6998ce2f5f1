//! `rescatter bench`.

mod clock;
mod report;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use rescatter::backbone::{Features, Pass, Vit};
use rescatter::config::{DispatchConfig, Inference, Variant};
use rescatter::dispatch::{KeptStats, calibrate_clips};
use rescatter::engine::trainer::peak_memory_bytes;
use rescatter::head::{Head, ImageMeta};
use rescatter::ops::{Stopwatch, composed, in_precision};
use rescatter::rng::{Purpose, Rng};
use rescatter_heads::TaskModel;
use rescatter_heads::run::Trained;

use crate::trained::Checkpoint;
use clock::{Clock, Spent};
pub(crate) use report::Times;
use report::{Report, Side, Sides, print_json};

/// Arguments of `rescatter bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a run, an exported file, or a config.
    #[arg(value_name = "RUN|CONFIG")]
    target: PathBuf,
    /// Changes to the config.
    #[arg(value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Which checkpoint of the run.
    #[arg(long, default_value = "best")]
    checkpoint: Checkpoint,
    /// Height and width of the images; by default the size that the position embedding was made for.
    #[arg(long, value_name = "HxW", value_parser = size)]
    size: Option<(usize, usize)>,
    /// Images (or clips) per pass.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Timed passes of each kind, after one to warm up.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Share of the tokens that the skipping model keeps; by default the share that the config aims at.
    #[arg(long)]
    kept: Option<f64>,
    /// Time whole training steps (losses, gradients, update) of the config's model instead of inference.
    #[arg(long, conflicts_with = "kept")]
    train: bool,
    /// Time every block too.
    #[arg(long, conflicts_with = "train")]
    profile: bool,
    /// Run the composed definitions of all operations instead of their fused kernels.
    #[arg(long)]
    composed: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// `512x512` → height and width.
fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', '×']).map(|(h, w)| (h.parse::<usize>(), w.parse::<usize>()));
    match sides {
        Some((Ok(height), Ok(width))) if height > 0 && width > 0 => Ok((height, width)),
        _ => Err("give height and width in pixels, e.g. 512x512".into()),
    }
}

/// Runs `rescatter bench`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.batch > 0 && args.repeat > 0, "--batch and --repeat must be at least 1");
    let trained = Trained::open(&args.target, args.checkpoint.into(), &args.overrides)?;
    let run = || in_precision(trained.config.train.precision, || measure(&args, &trained));
    if args.composed { composed(run) } else { run() }
}

fn measure(args: &Args, trained: &Trained) -> Result<ExitCode> {
    let config = &trained.config;
    let [rows, columns] = config.backbone.pos_embed_grid;
    let patch = config.backbone.patch_size;
    let size = args.size.unwrap_or((rows * patch, columns * patch));
    if args.train {
        let frames = config.data.train.frames();
        let images = noise(args.batch * frames, size, trained.model.params().device())?;
        let (batch, repeat) = (args.batch, args.repeat);
        let report = step::Bench { trained, images, batch, size, repeat }.measure()?;
        if args.json {
            print_json(&report)?
        } else {
            report.print_table()?
        }
        return Ok(ExitCode::SUCCESS);
    }
    let share = args.kept.unwrap_or(match config.dispatch.inference {
        Inference::Threshold => config.dispatch.target_rate,
        Inference::TopK(share) | Inference::Calibrated(share) => share,
    });
    if !(0.0..=1.0).contains(&share) {
        bail!("--kept is a share between 0 and 1, got {share}");
    }
    let bench = Bench::new(trained, share, (args.batch, size))?;
    let mut sides = bench.measure(args.repeat)?;
    if args.profile {
        bench.profile(args.repeat, &mut sides)?;
    }
    let report = Report::new(trained, (args.batch, size), sides)?;
    if args.json {
        print_json(&report)?
    } else {
        report.print_table()?
    }
    Ok(ExitCode::SUCCESS)
}

/// Two backbones over the same weights, or the only one where nothing is skipped, and the images that both see.
struct Bench<'a> {
    model: &'a TaskModel,
    dense: Vit,
    skipping: Option<Vit>,
    noise: Noise,
}

/// A batch of normalised pixels that show nothing.
pub(crate) struct Noise {
    images: Tensor,
    /// Frames per clip; 1 for images.
    frames: usize,
    meta: ImageMeta,
}

impl<'a> Bench<'a> {
    /// The share is met exactly: thresholds are calibrated on the very images.
    fn new(
        trained: &'a Trained,
        share: f64,
        (batch, size): (usize, (usize, usize)),
    ) -> Result<Self> {
        let model = &trained.model;
        let config = &trained.config;
        let noise = Noise::new(trained, (batch, size))?;
        let reads = config.head.reads(model.backbone().dims().depth);
        let dispatch = DispatchConfig {
            inference: Inference::Calibrated(share),
            target_rate: share,
            ..config.dispatch.clone()
        };
        let all = DispatchConfig { target_rate: 1.0, ..dispatch.clone() };
        let scope = model.params().root().pp("backbone");
        let vit = |dispatch| Vit::new(&config.backbone, dispatch, &config.tuning, &reads, &scope);
        let dense = vit(&all)?;
        let skips = dispatch.variant != Variant::None;
        let skipping = if skips { Some(vit(&dispatch)?) } else { None };
        if let Some(skipping) = skipping.as_ref().filter(|vit| vit.dispatchers() > 0) {
            dense.set_thresholds(vec![f32::NEG_INFINITY; dense.dispatchers()]);
            calibrate_clips(skipping, std::slice::from_ref(&noise.images), noise.frames, share)?;
        }
        Ok(Self { model, dense, skipping, noise })
    }

    /// Both kinds in turn, so that a slower minute of the machine hits both.
    fn measure(&self, repeat: usize) -> Result<Sides> {
        let skipping = self.skipping.as_ref().map(|vit| self.first(vit)).transpose()?;
        let mut sides = Sides { dense: self.first(&self.dense)?, skipping };
        for _ in 0..repeat {
            for (vit, side) in self.with(&mut sides) {
                let (backbone, whole, _) = self.noise.pass(self.model, vit)?;
                side.backbone.push(backbone);
                side.whole.push(whole);
            }
        }
        Ok(sides)
    }

    /// Each backbone with its side.
    fn with<'s>(&'s self, sides: &'s mut Sides) -> impl Iterator<Item = (&'s Vit, &'s mut Side)> {
        let skipping = self.skipping.iter().zip(&mut sides.skipping);
        std::iter::once((&self.dense, &mut sides.dense)).chain(skipping)
    }

    /// Seconds per block, the embedding counted with the first; both kinds in turn.
    fn profile(&self, repeat: usize, sides: &mut Sides) -> Result<()> {
        for _ in 0..repeat {
            for (vit, side) in self.with(sides) {
                let Noise { images, frames, .. } = &self.noise;
                let (mut last, mut blocks) = (Stopwatch::start(images.device())?, Vec::new());
                vit.visit_clips(images, *frames, &Pass::Infer, |_, x| {
                    blocks.push(last.seconds()?);
                    last = Stopwatch::start(x.device())?;
                    Ok(())
                })?;
                side.blocks.push(blocks);
            }
        }
        Ok(())
    }

    /// The pass that warms up: not timed, but its memory and its decisions are looked at.
    fn first(&self, vit: &Vit) -> Result<Side> {
        forget_peak_memory();
        let (_, _, kept) = self.noise.pass(self.model, vit)?;
        Ok(Side {
            kept: kept.overall()?,
            kept_per_layer: kept.per_layer()?,
            peak_memory_bytes: peak_memory_bytes(),
            ..Side::default()
        })
    }
}

impl Noise {
    /// So many images (or clips) of one size, for the model of a run.
    pub(crate) fn new(trained: &Trained, (batch, size): (usize, (usize, usize))) -> Result<Self> {
        let frames = trained.config.data.train.frames();
        let images = noise(batch * frames, size, trained.model.params().device())?;
        let meta = ImageMeta { name: String::new(), original: size, input: size, flipped: false };
        Ok(Self { images, frames, meta })
    }

    /// What a backbone of the model takes, and the backbone with the head.
    pub(crate) fn pass(&self, model: &TaskModel, vit: &Vit) -> Result<(Spent, Spent, KeptStats)> {
        let clock = Clock::start(self.images.device())?;
        let features = vit.forward_clips(&self.images, self.frames, &Pass::Infer)?;
        let backbone = clock.stop()?;
        self.head(model, &features)?;
        Ok((backbone, clock.stop()?, features.kept))
    }

    /// From features to class scores, for segmentation at the size of the input.
    fn head(&self, model: &TaskModel, features: &Features) -> Result<()> {
        let metas = vec![self.meta.clone(); self.images.dim(0)? / self.frames];
        match model {
            TaskModel::Segmentation(model) => {
                for scores in model.head.predict(features, &metas)? {
                    scores.at_input_size()?;
                }
            }
            TaskModel::Detection(model) => {
                model.head.predict(features, &metas)?;
            }
            TaskModel::Video(model) => {
                model.head.predict(features, &metas)?;
            }
            TaskModel::Classification(model) => {
                model.head.predict(features, &metas)?;
            }
        }
        Ok(())
    }
}

/// Standard normal pixels: what normalised photographs are like on average.
fn noise(batch: usize, (height, width): (usize, usize), device: &Device) -> Result<Tensor> {
    let mut stream = Rng::new(0).stream(Purpose::Synthetic, 0, 0);
    let values = (0..batch * 3 * height * width).map(|_| stream.normal() as f32).collect();
    Ok(Tensor::from_vec(values, (batch, 3, height, width), device)?)
}

/// Lets the peak of the resident memory be that from now on. Where the system refuses, it stays that of the process.
fn forget_peak_memory() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!("the peak memory is that of the whole process: {error}");
    }
}
