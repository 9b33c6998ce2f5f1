#!/usr/bin/env bash
# Formatting, clippy and documentation, warnings as errors.
set -euo pipefail

cargo fmt --all --check
cargo clippy --release --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS=-Dwarnings cargo doc --release --workspace --no-deps --locked
