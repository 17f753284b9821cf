#!/usr/bin/env bash
# Balancing methods side by side on digits that are hard to hear: joint training from fresh encoders with
# each method, five seeds, tested against plain joint training and against Uniform.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech in noise as loud as it; 1,000 test clips
# Hardware  two CPU cores; DEVICES="cuda:0 cuda:1" takes devices in turn
# Minutes   not measured yet: half a minute of a core for most runs, of which there are 80
# Expect    not run at full length yet
#
# Run it again after an interruption: what is finished is kept, what was begun goes on.
#
# SEEDS="0 1 2 3 4" METHODS="none uniform ..." JOBS=2 EPOCHS=8 FUSED_EPOCHS=8 ARCH=test_resnet OUT=DIR recipes/balance.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2 3 4}
methods=${METHODS:-none uniform mmpareto umt agm pmr opm dgl relearning g-blend smv g2d ogm-ge ogm-ge-late}
out=${OUT:-recipes/out/balance}
epochs=${FUSED_EPOCHS:-8}
small=(--num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip --batch-size 32 --schedule cosine --workers 0)
alone=("${small[@]}" --epochs "${EPOCHS:-8}" --lr 0.05)
joint=("${small[@]}" --epochs "$epochs" --lr 0.05 --mask none)

store=$out/store

# the published epochs are those of runs of 70 to 100; here they stand for the same shares of a shorter run
settings() {
  case $1 in
    opm) echo "--balance-set begin=$((epochs / 8))" ;;
    ogm-ge-late) echo "--balance-set begin=$((epochs / 8))" ;;
    smv) echo "--balance-set begin=$((epochs / 8))" ;;
    relearning) echo "--balance-set after=$((epochs / 4)),$((epochs / 2)),$((epochs * 3 / 4))" ;;
    g-blend) echo "--balance-set every=$((epochs < 4 ? 1 : epochs / 4))" ;;
    umt | g2d) echo "--teacher-audio $2/audio --teacher-visual $2/visual" ;;
  esac
}

# one piece of work: a seed, and an encoder or a method
work() {
  local run=$out/seed-$1 init device
  read -ra devices <<<"${DEVICES:-auto}"
  device=${devices[$((${SLOT:-0} % ${#devices[@]}))]}
  case $2 in
    audio | visual)
      init=$(avpt init --modality "$2" --weights random --arch "${ARCH:-test_resnet}" --seed "$1" --quiet \
        --out "$run/$2-init.safetensors")
      avpt finetune-unimodal "$store" --modality "$2" --seed "$1" --init "$init" "${alone[@]}" \
        --device "$device" --quiet --out "$run/$2"
      ;;
    *)
      # shellcheck disable=SC2046 # options, none of which has a space
      avpt fuse-train "$store" --audio "$run/audio-init.safetensors" --visual "$run/visual-init.safetensors" \
        --seed "$1" "${joint[@]}" --balance "$2" $(settings "$2" "$run") --device "$device" --quiet --out "$run/$2"
      ;;
  esac
}

if [ "${1:-}" = work ]; then
  work "$2" "$3"
  exit
fi

# JOBS pieces of work at a time, each on a device of its own; teachers come before those who learn from them
round() {
  for seed in $seeds; do
    for what in "$@"; do echo work "$seed" "$what"; done
  done | xargs -P "${JOBS:-2}" --process-slot-var=SLOT -n 3 recipes/balance.sh
}
manifest=${MANIFEST:-$(digits "$out/digits" --snr "${SNR:-0}" --picture-noise "${PICTURE_NOISE:-0.8}")}
avpt preprocess "$manifest" --out "$store" --mel-bins 64 --spectrogram-frames 64 --frame-size 32
round audio visual
read -ra named <<<"$methods"
round "${named[@]}"

rows=()
for what in audio visual "${named[@]}"; do
  rows+=("$what=$(for seed in $seeds; do printf '%s ' "$out/seed-$seed/$what"; done)")
done
python recipes/results_table.py "${rows[@]}"

# the encoders alone, judged together without training
for seed in $seeds; do
  run=$out/seed-$seed
  avpt evaluate "$run/audio" "$store" --ensemble "$run/visual" --out "$run/ume.json"
done

runs=() against=() first=$out/seed-${seeds%% *}
for seed in $seeds; do
  for method in "${named[@]}"; do runs+=("$out/seed-$seed/$method"); done
done
for baseline in none uniform; do
  if [ -d "$first/$baseline" ]; then against+=(--against "$first/$baseline"); fi
done
avpt compare "${runs[@]}" --metric accuracy "${against[@]}"
