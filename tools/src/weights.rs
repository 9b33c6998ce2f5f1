//! `rescatter weights`.

use std::process::ExitCode;

/// Arguments of `rescatter weights`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter weights`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter weights` is being written")
}
