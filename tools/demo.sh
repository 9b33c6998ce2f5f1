#!/usr/bin/env bash
# From nothing to segmented pictures: makes sample sets, pretrains a tiny ViT as a classifier, freezes it, tunes it with
# token dispatch and UPerNet on segmentation, evaluates it and draws its predictions.
set -euo pipefail

export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
rescatter="${CARGO_TARGET_DIR:-target}/release/rescatter"
demo=demo
start=$SECONDS
step() { printf '\n== %s\n' "$*"; }

rm -rf "$demo"
step "making a classification set and an ADE20K-style segmentation set"
"$rescatter" data make shapes --output $demo/shapes --count 8000 --seed 1
"$rescatter" data make ade20k --output $demo/ade --count 1000 --seed 2

step "pretraining a tiny ViT as a classifier"
"$rescatter" train configs/demo_pretrain.yaml --run $demo/pretrain
"$rescatter" weights export $demo/pretrain --output $demo/tiny_vit.safetensors

step "freezing it; tuning adapters, dispatchers and UPerNet on segmentation"
"$rescatter" train configs/demo.yaml --run $demo/run

step "evaluating the best checkpoint"
"$rescatter" eval $demo/run

step "predicting"
"$rescatter" predict $demo/run $demo/ade/images/validation --output $demo/predictions

echo
echo "done in $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
echo "overlays, label maps, token maps and the legend: $PWD/$demo/predictions"
