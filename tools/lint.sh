#!/usr/bin/env bash
# Formatting, clippy and documentation, warnings as errors.
set -euo pipefail

cargo fmt --all --check
# shellcheck disable=SC2046  # no word or two
cargo clippy --release --workspace --all-targets --locked $(tools/features.sh) -- -D warnings
# shellcheck disable=SC2046
RUSTDOCFLAGS=-Dwarnings cargo doc --release --workspace --no-deps --locked $(tools/features.sh)
