//! `rescatter train`.

use std::process::ExitCode;

/// Arguments of `rescatter train`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter train`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter train` is being written")
}
