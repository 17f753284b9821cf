#!/usr/bin/env bash
# Initialisation across modalities, both ways, on digits: what becomes of the other modality's BatchNorm.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 400 train, 100 val, 1,000 test clips
# Hardware  two CPU cores
# Minutes   about 60 for three seeds, of one core
# Expect    test accuracy 0.92 (audio) and 0.90 (visual) from random, no initialisation better; table in recipes/README.md
#
# SEEDS="0 1 2" EPOCHS=8 OUT=DIR recipes/cross-modal.sh; the encoders to start from are trained here, from random.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2}
out=${OUT:-recipes/out/cross-modal}
# no crop and no flip: on digits they ruin the labels
train=(--epochs "${EPOCHS:-8}" --num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip
       --batch-size 32 --lr 0.05 --schedule cosine --workers 0)

manifest=${MANIFEST:-$(digits "$out/digits")}
store=$(avpt preprocess "$manifest" --out "$out/store" \
  --mel-bins 64 --spectrogram-frames 64 --frame-size 32)

tune() { # MODALITY NAME SEED INIT-OPTIONS...: an encoder, trained; the run is OUT/MODALITY-NAME/SEED
  local modality=$1 run=$out/$1-$2/$3 seed=$3
  avpt init --modality "$modality" --seed "$seed" "${@:4}" --out "$run-init.safetensors"
  avpt finetune-unimodal "$store" --modality "$modality" --seed "$seed" --init "$run-init.safetensors" "${train[@]}" \
    --out "$run"
}

for seed in $seeds; do
  tune visual random "$seed" --weights random
  tune audio random "$seed" --weights random
  for bn in keep reset reset-abnormal abri; do
    tune audio "$bn" "$seed" --weights "$out/visual-random/$seed" --bn "$bn"
    tune visual "$bn" "$seed" --weights "$out/audio-random/$seed" --bn "$bn"
  done
done

for modality in audio visual; do
  rows=()
  for how in random keep reset reset-abnormal abri; do
    rows+=("$modality, $how=$(for seed in $seeds; do printf '%s ' "$out/$modality-$how/$seed"; done)")
  done
  python recipes/results_table.py "${rows[@]}"
done
