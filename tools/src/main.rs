//! The command `rescatter`.

mod bench;
mod compare;
mod data;
mod eval;
mod flops;
mod pixels;
mod predict;
mod process;
mod score;
mod train;
mod trained;
mod verify;
mod weights;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rescatter::world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Segment, detect and read video with vision transformers that skip unimportant tokens.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// Threads for the arithmetic; without it `RAYON_NUM_THREADS`, or one per core.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the model of a config.
    Train(train::Args),
    /// Evaluate a run, or a config with its weights.
    Eval(eval::Args),
    /// Predict on images or videos and draw the results.
    Predict(predict::Args),
    /// Train several methods alike, and put what they reach into a table and a plot.
    Compare(compare::Args),
    /// Time the dense model beside the skipping one.
    Bench(bench::Args),
    /// Count the multiply-adds of a config.
    Flops(flops::Args),
    /// Check, browse or make data sets.
    Data(data::Args),
    /// Inspect, convert, export and list checkpoints.
    Weights(weights::Args),
    /// Score predictions that any model wrote.
    Score(score::Args),
    /// Run reference files and print the largest errors.
    Verify(verify::Args),
}

fn main() -> ExitCode {
    process::prepare();
    let joined = World::join();
    let leads = joined.as_ref().map_or(true, |(world, _)| world.leads());
    let filter = tracing_subscriber::EnvFilter::try_from_env("RESCATTER_LOG")
        .unwrap_or_else(|_| if leads { "info" } else { "warn" }.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Train(_) | Command::Compare(_)) {
        process::end_with_the_reader();
    }
    // This thread works too instead of waiting to be woken after every operation. Fails only if a pool exists already, and
    // none does yet.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(cli.threads.unwrap_or(0));
    if let Err(error) = pool.use_current_thread().build_global() {
        tracing::warn!("{error}");
    }
    let (world, _membership) = match joined {
        Ok(joined) => joined,
        Err(error) => return failed(&error.into()),
    };
    let result = match cli.command {
        Command::Train(args) => train::run(args, world),
        Command::Eval(args) => eval::run(args, world),
        _ if world.size > 1 => Err(rescatter::Error::usage(
            "only `train` and `eval` share their work among several processes",
        )
        .into()),
        Command::Predict(args) => predict::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Flops(args) => flops::run(args),
        Command::Data(args) => data::run(args),
        Command::Weights(args) => weights::run(args),
        Command::Score(args) => score::run(args),
        Command::Verify(args) => verify::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let code = failed(&error);
            world.abort();
            code
        }
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<rescatter::Error>()?.hint());
    if let Some(hint) = hint {
        eprintln!("\nhint: {hint}");
    }
    ExitCode::FAILURE
}
