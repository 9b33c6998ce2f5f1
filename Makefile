# One build serves the tests, the demo and the binary: the same profile, the same features. Those are asked for when a recipe
# runs, so that `make setup VIDEO=1` counts.
CARGO ?= cargo
BUILD  = $(CARGO) build --release --workspace --all-targets --locked $$(tools/features.sh)

.PHONY: help setup build demo test lint cuda gpu-check

help:
	@echo "make demo    install what is missing, build, and go from nothing to segmented pictures"
	@echo "make test    build and run every test; ends with a line per skipped test"
	@echo "make lint    formatting, clippy and documentation, warnings as errors"
	@echo "make setup   install what a fresh Debian machine lacks; with VIDEO=1 also ffmpeg, to read video files,"
	@echo "             with MPI=1 Open MPI, to train on several processes"
	@echo "make cuda    build target/cuda/release/rescatter for NVIDIA GPUs (also where there is none); with CUDNN=1"
	@echo "             convolutions are cuDNN's"
	@echo "make gpu-check  on a machine with a GPU: kernels, reference files and times beside PyTorch"

setup:
	@VIDEO=$(VIDEO) MPI=$(MPI) tools/setup.sh

build: setup
	@tools/with-cargo.sh $(BUILD)

demo: build
	@tools/demo.sh

test: build
	@tools/with-cargo.sh tools/test.sh

lint: setup
	@tools/with-cargo.sh tools/lint.sh

cuda: setup
	@tools/with-cargo.sh tools/cuda/cargo.sh build

gpu-check: setup
	@tools/with-cargo.sh tools/cuda/check.sh
