#!/usr/bin/env bash
# ESC-50 from ImageNet weights: what ABRi gains where pictures' weights are put on sounds (fold 5 is the test).
#
# Data      ESC50=DIR: the data set as shipped (meta/esc50.csv, audio/), 2,000 clips of 5 s, each tiled twice
# Hardware  one GPU of 12 GB
# Hours     under 1 for a seed; an estimate, not measured
# Published 92.9 by an ensemble of ImageNet DenseNets, mean of five folds (arXiv 2007.11154); no number of arXiv 2302.03533
#           is at hand. Its released code normalises with -5.903 / 4.507 (tiled, at the clips' native rate)
#
# ESC50=/data/ESC-50-master recipes/esc50.sh; SEED=1 and FOLD=1 for the others.
set -euo pipefail
clips=${ESC50:?say where the data set is, ESC50=DIR}
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seed=${SEED:-0}
fold=${FOLD:-5}
out=${OUT:-recipes/out/esc50}/fold-$fold
run=$out/seed-$seed
train=(--seed "$seed" --epochs 80 --milestones 60 --batch-size 64 --lr 1e-3 --spec-augment 15 64)

mkdir -p "$out"
manifest=$(avpt manifest esc50 "$clips" --test-fold "$fold" --val-fraction 0.1 --out "$out/manifest.csv")
store=$(avpt preprocess "$manifest" --out "$out/store" --pad repeat)

rows=()
for bn in keep reset reset-abnormal abri; do
  init=$(avpt init --modality audio --weights imagenet --bn "$bn" --out "$run/$bn.safetensors")
  avpt finetune-unimodal "$store" --modality audio --init "$init" "${train[@]}" --out "$run/$bn"
  rows+=("ImageNet, $bn=$run/$bn")
done
init=$(avpt init --modality audio --weights random --seed "$seed" --out "$run/random.safetensors")
avpt finetune-unimodal "$store" --modality audio --init "$init" "${train[@]}" --out "$run/random"

python recipes/results_table.py "random=$run/random" "${rows[@]}"
