#!/usr/bin/env bash
# A set of pictures from an encoder that was trained on sound: CIFAR-100, Caltech-256 or any folder of class folders.
#
# Data      IMAGES=DIR: train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png; WEIGHTS=FILE: a ResNet-18 trained on
#           spectrograms, such as recipes/vggsound.sh leaves in OUT/seed-0/audio
# Hardware  one GPU of 12 GB
# Hours     about 3 for a seed on CIFAR-100; an estimate, not measured
# Published CIFAR-100, 80 epochs, ResNet-18: random 74.5, VGGSound (audio) 71.2, with ABRi 75.0 (arXiv 2302.03533, read
#           off its figures, +-0.2)
#
# IMAGES=/data/cifar100 WEIGHTS=recipes/out/vggsound/seed-0/audio recipes/images-from-audio.sh
set -euo pipefail
images=${IMAGES:?say where the pictures are, IMAGES=DIR}
weights=${WEIGHTS:?say which audio encoder to start from, WEIGHTS=FILE or a run folder}
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seed=${SEED:-0}
out=${OUT:-recipes/out/images-from-audio}
run=$out/seed-$seed
train=(--seed "$seed" --epochs 80 --milestones 60 --batch-size 64 --lr 1e-2 --num-frames 1 --crop-scale 0.5 1.0)

mkdir -p "$out"
manifest=$(avpt manifest image-folder "$images" --val-fraction 0.05 --out "$out/manifest.csv")
store=$(avpt preprocess "$manifest" --out "$out/store" --max-frames 1)

rows=()
for bn in keep reset reset-abnormal abri; do
  init=$(avpt init --modality visual --weights "$weights" --bn "$bn" --out "$run/$bn.safetensors")
  avpt finetune-unimodal "$store" --modality visual --init "$init" "${train[@]}" --out "$run/$bn"
  rows+=("audio weights, $bn=$run/$bn")
done
init=$(avpt init --modality visual --weights random --seed "$seed" --out "$run/random.safetensors")
avpt finetune-unimodal "$store" --modality visual --init "$init" "${train[@]}" --out "$run/random"

python recipes/results_table.py "random=$run/random" "${rows[@]}"
