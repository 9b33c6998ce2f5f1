//! `rescatter weights prune`.

use std::io::Write;
use std::path::PathBuf;

use rescatter::engine::checkpoint::export;
use rescatter::world::World;
use rescatter::{Error, Result};
use rescatter_heads::prune::{Use, uses};
use rescatter_heads::{Config, Trained, calibration, flops};
use serde_json::json;

use super::export::{Choice, deployed, known};

/// Arguments of `rescatter weights prune`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder of a run, or an exported file.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The safetensors file to write; `eval` and `predict` take it in place of the run.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Changes to the config, e.g. the budget: `dispatch.inference.calibrated=0.3`.
    #[arg(value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Which checkpoint of the run.
    #[arg(long, value_name = "WHICH", default_value = "best")]
    checkpoint: Choice,
    /// The images that decide what is used.
    #[arg(long, value_name = "SET", default_value = "val")]
    images: Images,
    /// Drop also what this share of the patches passes; predictions then change.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    tolerance: f64,
    /// Drop also what class and register tokens alone pass, although something reads them; predictions then change.
    #[arg(long)]
    drop_prefix: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Images {
    /// The validation set.
    Val,
    /// The training set, with the transforms of the validation set.
    Train,
}

pub(super) fn run(args: &Args) -> Result<()> {
    if !(0.0..1.0).contains(&args.tolerance) {
        let reason = format!("--tolerance is a share of at least 0, got {}", args.tolerance);
        return Err(Error::usage(reason));
    }
    let which = args.checkpoint.into();
    let trained = Trained::open(&args.run, which, &args.overrides)?.calibrated()?;
    if trained.model.backbone().dispatchers() == 0 {
        return Err(Error::usage("the model has no learned dispatchers: all of it is always used"));
    }
    let config = looked_at(&trained.config, args.images)?;
    let kept = trained
        .model
        .evaluate(&config, &trained.classes, World::SINGLE, &|_, _| {})?
        .kept_per_layer;
    let uses = uses(&trained.config, &kept, args.tolerance)?;
    let dropped = |number: &usize| {
        let again = trained.config.dispatch.pruned.contains(number);
        !again && (uses[*number] == Use::None || (args.drop_prefix && uses[*number] == Use::Prefix))
    };
    let dropped: Vec<usize> = (0..uses.len()).filter(dropped).collect();
    if dropped.is_empty() {
        return Err(nothing_unused(&kept, &uses));
    }
    let pruned = trained.pruned(&dropped)?;
    let meta = deployed(&pruned.config, &pruned.model, known(&args.run, which)?)?;
    export(&args.output, pruned.model.params(), &meta)?;
    let saved = Saved::new(&trained, &pruned, &kept)?;
    let mut out = std::io::stdout().lock();
    let printed = if args.json {
        saved.print_json(&mut out, &dropped, &kept)
    } else {
        saved.print(&mut out, &names(&trained.config, &dropped))
    };
    printed.map_err(|error| Error::usage(format!("the result cannot be printed: {error}")))
}

/// The config whose validation images decide.
fn looked_at(config: &Config, images: Images) -> Result<Config> {
    let mut config = config.clone();
    if let Images::Train = images {
        config.data.val = calibration::training_as_evaluated(&config)?;
    }
    Ok(config)
}

/// What to call the parts of blocks that the dispatchers decide about.
fn names(config: &Config, numbers: &[usize]) -> Vec<String> {
    let sites = config.dispatch.variant.dispatched();
    let name = |number: &usize| {
        let site = sites[number % sites.len()].name();
        format!("{site} of block {}", number / sites.len())
    };
    numbers.iter().map(name).collect()
}

fn nothing_unused(kept: &[f64], uses: &[Use]) -> Error {
    let least = kept.iter().copied().fold(f64::INFINITY, f64::min);
    let error = Error::usage(format!(
        "nothing is unused: every dispatcher lets pass at least {:.2} % of the patches, or tokens that are read",
        100.0 * least
    ));
    match uses.contains(&Use::Prefix) {
        true => error.with_hint(
            "no patch, but the class token passes some parts, and later blocks or the head read it; \
             `--drop-prefix` drops these parts all the same",
        ),
        false => error.with_hint("`--tolerance SHARE` drops also what few patches pass"),
    }
}

/// What a pruned model has less, and what the whole one had.
struct Saved {
    parameters: [usize; 2],
    bytes: usize,
    gmacs: [f64; 2],
    size: [usize; 2],
}

impl Saved {
    fn new(before: &Trained, after: &Trained, kept: &[f64]) -> Result<Self> {
        let [rows, columns] = before.config.backbone.pos_embed_grid;
        let patch = before.config.backbone.patch_size;
        let size = [rows * patch, columns * patch];
        let numbers = |trained: &Trained| -> usize {
            trained.model.params().all().iter().map(|(_, param)| param.var.elem_count()).sum()
        };
        let gmacs = |trained: &Trained| -> Result<f64> {
            let pass = flops::Pass { size: size.into(), kept, classes: trained.classes.len() };
            Ok(flops::count(&trained.config, pass)?.executed_gmacs())
        };
        let parameters = [numbers(before) - numbers(after), numbers(before)];
        let element = before.model.params().dtype().size_in_bytes();
        let gmacs = [gmacs(before)? - gmacs(after)?, gmacs(before)?];
        Ok(Self { parameters, bytes: element * parameters[0], gmacs, size })
    }

    fn print(&self, out: &mut impl Write, names: &[String]) -> std::io::Result<()> {
        let share = |[part, whole]: [f64; 2]| 100.0 * part / whole;
        let ([height, width], parameters) = (self.size, self.parameters.map(|n| n as f64));
        writeln!(out, "dropped: {}", names.join(", "))?;
        writeln!(
            out,
            "saved: {} parameters ({:.1} %), {:.2} MB, {:.4} of {:.4} GMACs on {height}×{width} pixels ({:.1} %)",
            self.parameters[0],
            share(parameters),
            self.bytes as f64 / 1e6,
            self.gmacs[0],
            self.gmacs[1],
            share(self.gmacs)
        )
    }

    fn print_json(
        &self,
        out: &mut impl Write,
        dropped: &[usize],
        kept: &[f64],
    ) -> std::io::Result<()> {
        let report = json!({
            "dropped": dropped,
            "kept_per_layer": kept,
            "size": self.size,
            "parameters_saved": self.parameters[0],
            "parameters": self.parameters[1],
            "bytes_saved": self.bytes,
            "gmacs_saved": self.gmacs[0],
            "gmacs": self.gmacs[1],
        });
        writeln!(out, "{report:#}")
    }
}
