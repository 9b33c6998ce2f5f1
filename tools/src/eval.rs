//! `rescatter eval`.

use std::process::ExitCode;

/// Arguments of `rescatter eval`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter eval`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter eval` is being written")
}
