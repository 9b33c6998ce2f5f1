//! `rescatter data`: check a set, look at it, make one.

mod browse;
mod check;
mod make;
mod shapes;

use std::process::ExitCode;

/// Arguments of `rescatter data`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Read every file of both splits and report what is wrong; exit code 1 if something is.
    Check(check::Args),
    /// Draw transformed samples with their labels, as training sees them.
    Browse(browse::Args),
    /// Make a synthetic sample set in a true on-disk format.
    Make(make::Args),
}

/// Runs `rescatter data`.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Check(args) => check::run(&args),
        Action::Browse(args) => browse::run(&args),
        Action::Make(args) => make::run(&args),
    }
}

/// A config whose head is not looked at: data commands serve every task.
type AnyConfig = rescatter::config::Config<serde_yaml::Value>;
