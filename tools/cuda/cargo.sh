#!/usr/bin/env bash
# Runs `cargo SUBCOMMAND` for NVIDIA GPUs; what it builds lies in target/cuda. Neither a GPU nor a driver need be here, only the
# compiler `nvcc`; where it is missing NVIDIA's wheels are fetched into target/cuda. Without a driver the binary works on the CPU.
#
#   tools/cuda/cargo.sh build            target/cuda/release/rescatter
#   tools/cuda/cargo.sh test --test golden
#
# CUDNN=1 builds the feature `cudnn`: convolutions by cuDNN, which need be here neither, but where the program runs.
set -euo pipefail

version=13.0
built=$PWD/target/cuda
toolkit=${CUDA_HOME:-/usr/local/cuda}
if [ ! -x "$toolkit/bin/nvcc" ]; then
    toolkit=$(compgen -G "$built/wheels/nvidia/cu*" | head -n 1 || true)
fi
if [ -z "$toolkit" ]; then
    echo "nvcc is not installed (CUDA_HOME, /usr/local/cuda): fetching NVIDIA's wheels of CUDA $version, about 1.2 GB" >&2
    python3 -m venv "$built/venv"
    "$built/venv/bin/pip" install --quiet --no-deps --target "$built/wheels" "nvidia-cuda-nvcc==$version.*" \
        "nvidia-cuda-crt==$version.*" "nvidia-nvvm==$version.*" "nvidia-cuda-runtime==$version.*" "nvidia-cuda-cccl==$version.*" \
        "nvidia-cublas==$version.*" nvidia-curand==10.4.0.35 "nvidia-cuda-nvrtc==$version.*"
    toolkit=$(compgen -G "$built/wheels/nvidia/cu*" | head -n 1)
fi
major=$("$toolkit/bin/nvcc" --version | sed -nE 's/.*release ([0-9]+)\..*/\1/p')

# The toolkit as the linker shall see it: its compiler and headers, but none of its dynamic libraries, so that the binary starts
# without them.
view=$built/toolkit
mkdir -p "$view/lib64"
for part in bin include nvvm; do
    if [ -e "$toolkit/$part" ]; then ln -sfn "$toolkit/$part" "$view/$part"; fi
done
static=$(compgen -G "$toolkit/lib*/libcudart_static.a" | head -n 1)
cp "$static" "$view/lib64/libcudart.a"

export CUDA_HOME=$view PATH=$view/bin:$PATH CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
unset CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR
features=$(tools/features.sh | sed 's/--features //')
case $features in *mpi*) features=$features,nccl ;; esac
[ -z "${CUDNN:-}" ] || features=${features:+$features,}cudnn
options=(--release --locked --workspace --target-dir "$built" --features "cuda${features:+,$features}")

# The functions that the program calls are known once its libraries are compiled.
cargo build "${options[@]}" --lib
find "$built/release" -name '*.rlib' -print0 | xargs -0 nm --undefined-only 2>/dev/null |
    grep -oE '\b(cu[A-Z]|cublas|cudnn[A-Z]|curand|nvrtc|nccl[A-Z])[A-Za-z0-9_]+$' | sort -u >"$view/names"
sed 's/.*/LAZY(&)/' "$view/names" >"$view/symbols.h"
cc -O2 -fPIC -c tools/cuda/lazy.c -o "$view/lazy.o" -I "$view" -DCUDA_MAJOR="\"$major\"" -DTOOLKIT="\"$(dirname "$static")\""
for library in cuda cublas cublasLt cudnn curand nvrtc nccl; do
    ar rcs "$view/lib64/lib$library.a" "$view/lazy.o"
done
subcommand=$1
shift
cargo "$subcommand" "${options[@]}" "$@"
