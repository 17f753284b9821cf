#!/usr/bin/env bash
# Clips of your own, in a folder for each class, to a fused model and a report: ABRi and masking from ImageNet weights.
#
# Data      CLIPS=DIR: DIR/CLASS/FILE, videos of any length with sound, five files or more of each class
# Hardware  CPU cores, or one GPU of 8 GB
# Hours     about 2 of eight cores for three seeds of 500 pieces of 10 s, minutes of a GPU; reckoned, not measured
# Expect    a table of test accuracies with their spread over the seeds; one clip is a large step where there are few
#
# CLIPS=~/clips recipes/own-clips.sh; everything below may be set in the same way (SEGMENT=2 SPECTROGRAM=200 FPS=3 for
# pieces of 2 s). Where the classes lie in train/, val/ and test/ already, SPLIT="" leaves them there.
set -euo pipefail
clips=$(cd "${CLIPS:?say where the folders of the classes are, CLIPS=DIR}" && pwd)
cd "$(dirname "$0")/.."

seeds=${SEEDS:-0 1 2}
out=${OUT:-recipes/out/own-clips}
weights=${WEIGHTS:-imagenet}         # or random, or a file
split=${SPLIT---test-fraction 0.2 --val-fraction 0.1} # of the files, not of the pieces
segment=${SEGMENT:-10}               # seconds of a piece
spectrogram=${SPECTROGRAM:-1000}     # frames of its spectrogram, 100 for each second
mel_bins=${MEL_BINS:-128}
fps=${FPS:-1}                        # pictures of it that are kept, for each second
num_frames=${NUM_FRAMES:-3}          # of which the network sees so many at a time
image_size=${IMAGE_SIZE:-160}
audio_patch=${AUDIO_PATCH:-20x8}     # what is masked at once: some hundred patches fit into a spectrogram
visual_patch=${VISUAL_PATCH:-10}     # and into a picture
batch_size=${BATCH_SIZE:-16}
epochs=${EPOCHS:-20}                 # of each encoder alone
fused_epochs=${FUSED_EPOCHS:-10}     # of both together
lr=${LR:-0.01}

source recipes/venv.sh
activate

train=(--num-frames "$num_frames" --image-size "$image_size" --batch-size "$batch_size" --lr "$lr" --schedule cosine)
patches=(--audio-patch "$audio_patch" --visual-patch "$visual_patch")

mkdir -p "$out"
# shellcheck disable=SC2086
manifest=$(avpt manifest folder "$clips" --segment "$segment" $split --out "$out/manifest.csv")
store=$(avpt preprocess "$manifest" --out "$out/store" --spectrogram-frames "$spectrogram" --mel-bins "$mel_bins" \
  --fps "$fps")

fused=()
for seed in $seeds; do
  run=$out/seed-$seed
  init=$(avpt init --modality visual --weights "$weights" --seed "$seed" --out "$run/visual-init.safetensors")
  avpt finetune-unimodal "$store" --modality visual --seed "$seed" --init "$init" --epochs "$epochs" "${train[@]}" \
    --out "$run/visual"
  init=$(avpt init --modality audio --weights "$weights" --bn abri --seed "$seed" --out "$run/audio-init.safetensors")
  avpt finetune-unimodal "$store" --modality audio --seed "$seed" --init "$init" --epochs "$epochs" "${train[@]}" \
    --out "$run/audio"
  avpt score-confidence --audio "$run/audio" --visual "$run/visual" "${patches[@]}" \
    --out "$run/confidence.safetensors"

  both=(--audio "$run/audio" --visual "$run/visual" --seed "$seed" --epochs "$fused_epochs" "${train[@]}")
  avpt fuse-train "$store" "${both[@]}" --mask none --out "$run/unmasked"
  avpt fuse-train "$store" "${both[@]}" --confidence "$run/confidence.safetensors" "${patches[@]}" --out "$run/masked"
  fused+=("$run/unmasked" "$run/masked")
done
report=$(avpt report "${fused[@]}" --title "$(basename "$clips")" --out "$out/report.html")

rows=()
for how in audio visual unmasked masked; do
  rows+=("$how=$(for seed in $seeds; do printf '%s ' "$out/seed-$seed/$how"; done)")
done
python recipes/results_table.py "${rows[@]}"
echo
echo "the fused model, of the first seed"
echo "  ${fused[1]}/model.safetensors"
echo
echo "what all of it says, to be opened in a browser"
echo "  $report"
