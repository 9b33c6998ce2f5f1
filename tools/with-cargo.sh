#!/usr/bin/env bash
# Runs a command with cargo on the PATH, also right after `make setup` installed it.
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
exec "$@"
