#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: every kernel against its composed definition, every reference file, a short training run, and
# the times beside PyTorch where that is installed (PYTHON=…). Takes the device as its argument, by default cuda:0. With CUDNN=1
# convolutions are cuDNN's.
set -euo pipefail

device=${1:-cuda:0}
command -v nvidia-smi >/dev/null || {
    echo "error: there is no NVIDIA driver here (nvidia-smi is missing); \`make cuda\` builds without one" >&2
    exit 1
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
tools/cuda/cargo.sh build
for architecture in sm_80 sm_90; do
    target/cuda/toolkit/bin/nvcc -cubin "-arch=$architecture" -std=c++17 src/ops/gpu/kernels.cu -o "target/cuda/kernels-$architecture.cubin"
done
echo "== kernels and reference files on $device"
RESCATTER_TEST_DEVICE=$device tools/cuda/cargo.sh test --lib -- gpu
RESCATTER_TEST_DEVICE=$device tools/cuda/cargo.sh test --test golden
rescatter=$PWD/target/cuda/release/rescatter
if [ -d ../shared/data/camvid ]; then
    echo "== CamVid, 300 steps on $device and their mIoU"
    rm -rf target/cuda/camvid
    "$rescatter" train configs/camvid_upernet_vit_s14_dyt_300it.yaml --run target/cuda/camvid "device=$device"
fi
echo "== beside PyTorch on $device"
if "${PYTHON:-python3}" -c 'import torch, timm' 2>/dev/null; then
    for dtype in f32 tf32 bf16; do
        "${PYTHON:-python3}" benches/beside_torch.py --binary "$rescatter" --device "$device" --dtype "$dtype" --peer compile
    done
else
    echo "skipped: the times beside PyTorch because torch and timm are not installed for ${PYTHON:-python3}"
fi
