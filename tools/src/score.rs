//! `rescatter score`.

use std::process::ExitCode;

/// Arguments of `rescatter score`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter score`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter score` is being written")
}
