//! `rescatter predict`.

use std::process::ExitCode;

/// Arguments of `rescatter predict`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter predict`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter predict` is being written")
}
