//! What is promised of images, labels, data sets, the loader and the data commands.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[path = "data/classes.rs"]
mod classes;
#[path = "data/coco.rs"]
mod coco;
#[path = "data/commands.rs"]
mod commands;
#[path = "data/images.rs"]
mod images;
#[path = "data/loader.rs"]
mod loader;
#[path = "data/real.rs"]
mod real;
#[path = "data/rle.rs"]
mod rle;
#[path = "data/score_coco.rs"]
mod score_coco;
#[path = "data/sets.rs"]
mod sets;

use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// A file of the fixtures of these tests.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The command under test.
fn rescatter() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rescatter"));
    command.env("RESCATTER_LOG", "warn");
    command
}

/// Stands for the image in paths of messages.
fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
