#!/usr/bin/env bash
# Spoken digits paired with handwritten ones, all of the method in one run.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 400 train, 100 val, 1,000 test clips
# Hardware  two CPU cores
# Minutes   11 of one core, after an installation of about 3
# Expect    test accuracy 0.90 (sound), 0.90 (pictures), 0.97 (both, masked or not); means of three seeds, see README.md
#
# No pre-trained weights are needed: the visual encoder is trained from random first, and the audio encoder starts
# from it, across modalities, with ABRi. A second run finds everything done.
#
# SEED=1 recipes/quickstart.sh repeats it with another seed; OUT=DIR puts the files elsewhere; MANIFEST=FILE takes other
# digits, such as those of recipes/make_av_mnist.py.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seed=${SEED:-0}
out=${OUT:-recipes/out/quickstart}
run=$out/seed-$seed
# no crop and no flip: on digits they ruin the labels
train=(--seed "$seed" --num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip
       --batch-size 32 --schedule cosine --workers 0)
alone=("${train[@]}" --epochs 8 --lr 0.05)
joint=("${train[@]}" --epochs 5 --lr 0.01)
# the paper's patches are made for inputs of 1024 x 128 and 224 x 224
patches=(--audio-patch 8x8 --visual-patch 4)

manifest=${MANIFEST:-$(digits "$out/digits")}
store=$(avpt preprocess "$manifest" --out "$out/store" \
  --mel-bins 64 --spectrogram-frames 64 --frame-size 32)

init=$(avpt init --modality visual --weights random --seed "$seed" --out "$run/visual-init.safetensors")
visual=$(avpt finetune-unimodal "$store" --modality visual --init "$init" "${alone[@]}" --out "$run/visual")

init=$(avpt init --modality audio --weights "$visual" --bn abri --seed "$seed" --out "$run/audio-init.safetensors")
audio=$(avpt finetune-unimodal "$store" --modality audio --init "$init" "${alone[@]}" --out "$run/audio")

confidence=$(avpt score-confidence --audio "$audio" --visual "$visual" "${patches[@]}" \
  --out "$run/confidence.safetensors")

unmasked=$(avpt fuse-train "$store" --audio "$audio" --visual "$visual" --mask none \
  "${joint[@]}" --out "$run/fused-unmasked")
masked=$(avpt fuse-train "$store" --audio "$audio" --visual "$visual" --confidence "$confidence" "${patches[@]}" \
  "${joint[@]}" --out "$run/fused-adaptive")

for modality in audio visual; do # has joint training damaged the encoder?
  avpt probe "$unmasked" "$store" --modality "$modality" --workers 0 --out "$run/probe-$modality.safetensors"
done
report=$(avpt report "$unmasked" "$masked" --title "digits, seed $seed" --out "$run/report.html")

python recipes/results_table.py \
  "audio alone=$audio" "visual alone=$visual" "joint, no masking=$unmasked" "joint, adaptive masking=$masked"
echo
echo "artifacts"
printf '  %s\n' "$store" "$run"/*.safetensors "$audio" "$visual" "$unmasked" "$masked"
echo
echo "what all of it says, to be opened in a browser"
echo "  $report"
