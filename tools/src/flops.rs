//! `rescatter flops`.

use std::process::ExitCode;

/// Arguments of `rescatter flops`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `rescatter flops`.
pub(crate) fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`rescatter flops` is being written")
}
