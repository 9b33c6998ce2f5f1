//! `rescatter verify`.

use std::process::ExitCode;

/// Arguments of `rescatter verify`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter verify`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter verify` is being written")
}
