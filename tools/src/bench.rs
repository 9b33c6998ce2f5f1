//! `rescatter bench`.

use std::process::ExitCode;

/// Arguments of `rescatter bench`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter bench`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter bench` is being written")
}
