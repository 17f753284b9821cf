#!/usr/bin/env bash
# Dead channels made on purpose: a visual encoder whose BatchNorm weight decay drives to zero, carried over to sound.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 400 train, 100 val, 1,000 test clips
# Hardware  two CPU cores
# Minutes   about 45 for three seeds, of one core, without `blend`, which was not measured yet
# Expect    sound 0.92 from random and with BatchNorm kept, 0.86 with abri, 0.55 +- 0.13 with reset; recipes/README.md
#
# Encoders that are pre-trained at length on millions of pictures come with such channels; this one gets them in a
# minute, as weight decay acts on BatchNorm too. `avpt inspect` then shows what the paper's Figure 2 shows.
#
# SEEDS="0 1 2" PRETRAINING=60 EPOCHS=8 OUT=DIR recipes/dead-channels.sh; figures are in OUT/figures.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2}
out=${OUT:-recipes/out/dead-channels}
# no crop and no flip: on digits they ruin the labels
train=(--num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip --batch-size 32 --lr 0.05 --schedule cosine --workers 0)

manifest=${MANIFEST:-$(digits "$out/digits")}
store=$(avpt preprocess "$manifest" --out "$out/store" \
  --mel-bins 64 --spectrogram-frames 64 --frame-size 32)

for seed in $seeds; do
  run=$out/seed-$seed
  avpt init --modality visual --weights random --seed "$seed" --out "$run/random-visual.safetensors"
  avpt finetune-unimodal "$store" --modality visual --init "$run/random-visual.safetensors" --seed "$seed" "${train[@]}" \
    --epochs "${PRETRAINING:-60}" --weight-decay 0.1 --decay-norm --out "$run/pretrained"
  avpt init --modality audio --weights random --seed "$seed" --out "$run/random.safetensors"
  for bn in keep reset reset-abnormal blend abri; do
    avpt init --modality audio --weights "$run/pretrained" --bn "$bn" --seed "$seed" --out "$run/$bn.safetensors"
  done
  for how in random keep reset reset-abnormal blend abri; do
    avpt finetune-unimodal "$store" --modality audio --init "$run/$how.safetensors" --seed "$seed" "${train[@]}" \
      --epochs "${EPOCHS:-8}" --out "$run/audio-$how"
  done
done

run=$out/seed-${seeds%% *}
avpt inspect "$run/keep.safetensors" --after "$run/audio-keep" --store "$store" --zero 1e-6 --overwrite \
  --plot "$out/figures/keep"
avpt inspect "$run/abri.safetensors" --after "$run/audio-abri" --store "$store" --zero 1e-6 --overwrite \
  --plot "$out/figures/abri"
avpt compare "$out"/seed-*/audio-* --overwrite --plot "$out/figures" --markdown "$out/comparison.md"

rows=()
for how in random keep reset reset-abnormal blend abri; do
  rows+=("sound, $how=$(for seed in $seeds; do printf '%s ' "$out/seed-$seed/audio-$how"; done)")
done
python recipes/results_table.py "pictures, pre-trained=$(for seed in $seeds; do printf '%s ' "$out/seed-$seed/pretrained"; done)" \
  "${rows[@]}"
