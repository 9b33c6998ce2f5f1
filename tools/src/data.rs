//! `rescatter data`.

use std::process::ExitCode;

/// Arguments of `rescatter data`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter data`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter data` is being written")
}
