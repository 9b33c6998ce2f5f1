#!/usr/bin/env bash
# Installs what a fresh Debian machine lacks to build Rescatter: a C linker and the Rust toolchain; with VIDEO=1 also ffmpeg
# and the headers of its libraries, with MPI=1 Open MPI. Does nothing twice.
set -euo pipefail

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        echo "error: \`$*\` needs root; run it yourself and repeat" >&2
        exit 1
    fi
}

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v cargo >/dev/null || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] || command -v curl >/dev/null || missing+=(curl ca-certificates)
if [ -n "${VIDEO:-}" ] && { [[ "$(tools/features.sh)" != *video* ]] || ! command -v ffmpeg >/dev/null; }; then
    missing+=(ffmpeg libavcodec-dev libavformat-dev libavutil-dev libavfilter-dev libavdevice-dev libswscale-dev
        libswresample-dev libclang-dev pkg-config)
fi
if [ -n "${MPI:-}" ] && [[ "$(tools/features.sh)" != *mpi* ]]; then
    missing+=(openmpi-bin libopenmpi-dev libclang-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    as_root apt-get update -qq
    as_root apt-get install -y -qq "${missing[@]}"
fi
if ! command -v cargo >/dev/null && [ ! -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
fi
