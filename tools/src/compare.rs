//! `rescatter compare`: a list of methods under one budget on one data set (or on the tasks of VTAB-1K), and a table and a
//! plot of what they reach.

mod canvas;
mod measure;
mod plan;
mod plot;
mod summary;
mod table;
mod turns;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rescatter::config::VtabTask;
use rescatter::engine::{Outcome, Run, Start};
use rescatter::fs::atomic_write;
use rescatter::world::World;
use rescatter_heads::extension::Base;
use rescatter_heads::run::{Trained, Which};
use rescatter_heads::{Config, task};

use crate::{process, train};
use measure::Measured;
use plan::{Job, Plan};
use summary::Summary;

/// Arguments of `rescatter compare`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plan: `base`, `methods` and `seeds`.
    plan: PathBuf,
    /// Where the runs go, one folder each, and `compare.md`, `.json`, `.png` and `.svg`. Runs that are finished there are
    /// not repeated.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// All tasks of a suite instead of the one set of the base config, which must read it.
    #[arg(long)]
    suite: Option<Suite>,
    /// Only list the runs and whether they are done.
    #[arg(long)]
    list: bool,
    /// Changes to the config of every run, `key.path=value`.
    #[arg(value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// The nineteen tasks of VTAB-1K.
    Vtab,
}

/// Runs `rescatter compare`.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let plan = Plan::read(&args.plan)?;
    let tasks: Vec<Option<VtabTask>> = match args.suite {
        None => vec![None],
        Some(Suite::Vtab) => VtabTask::ALL.map(Some).to_vec(),
    };
    // A wrong plan is found before the first training, not after it.
    let jobs: Vec<(Job, Config)> = plan
        .jobs(&tasks, &args.overrides)
        .into_iter()
        .map(|job| job.config(&plan).map(|config| (job, config)))
        .collect::<Result<_>>()?;
    if args.list {
        for (job, _) in &jobs {
            let done = Run::open(&args.output.join(job.place())).is_ok_and(|run| is_done(&run));
            println!("{}  {}", if done { "done " } else { "to do" }, job.place().display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stop = process::stop_on_ctrl_c()?;
    let mut measured = Vec::new();
    for (number, (job, config)) in jobs.iter().enumerate() {
        tracing::info!("run {} of {}: {}", number + 1, jobs.len(), job.place().display());
        let folder = args.output.join(job.place());
        let found = finish(config.clone(), &folder, stop)
            .with_context(|| format!("in the run {}", folder.display()))?;
        measured.push((job.clone(), found));
    }
    let mut summary = Summary::new(&plan, measured)?;
    summary.set_seconds_per_image(&turns::seconds_per_image(&first_runs(&jobs, &args.output)?)?);
    let write = |name: &str, text: String| atomic_write(args.output.join(name), text);
    write("compare.md", table::markdown(&summary))?;
    write("compare.json", serde_json::to_string_pretty(&summary)? + "\n")?;
    plot::write(&summary, &args.output)?;
    print!("{}", table::markdown(&summary));
    Ok(ExitCode::SUCCESS)
}

/// The first run of every method.
fn first_runs(jobs: &[(Job, Config)], output: &Path) -> Result<Vec<Trained>> {
    let methods = jobs.chunk_by(|a, b| a.0.method == b.0.method);
    methods
        .map(|runs| Ok(Trained::open(&output.join(runs[0].0.place()), Which::Last, &[])?))
        .collect()
}

/// Trains unless that was done before, and reads what was found.
fn finish(config: Config, folder: &Path, stop: &AtomicBool) -> Result<Measured> {
    // The run's config is what the training makes of the given one.
    let mut resolved = config.clone();
    Base::open(&mut resolved)?;
    task::resolve_epochs(&mut resolved, World::SINGLE, None)?;
    let run = Run::claim(folder, &resolved, Start::Resume)?;
    if !is_done(&run) {
        let outcome = train::train(config, (folder, Start::Resume), World::SINGLE, stop)?;
        if matches!(outcome, Outcome::Interrupted { .. }) || stop.load(Ordering::Relaxed) {
            bail!("stopped; the same command goes on from here");
        }
    }
    Measured::read(&run, &resolved)
}

fn is_done(run: &Run) -> bool {
    run.results_path().is_file()
}
