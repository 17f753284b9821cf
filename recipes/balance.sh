#!/usr/bin/env bash
# Balancing methods side by side on digits that are hard to hear: joint training from fresh encoders with
# each method, and both encoders trained alone and judged as one (ume); five seeds, each tested against plain joint
# training and against Uniform.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech in noise as loud as it; 1,000 test clips
# Hardware  two CPU cores; DEVICES="cuda:0 cuda:1" takes devices in turn
# Minutes   76 of one core, for 90 runs
# Expect    none 0.385, uniform 0.432, ogm-ge 0.373, mmpareto 0.472, dgl 0.530, smv 0.577 (all in recipes/README.md)
#
# Run it again after an interruption: what is finished is kept, what was begun goes on.
#
# SEEDS="0 1 2 3 4" METHODS="none uniform ..." JOBS=2 EPOCHS=8 FUSED_EPOCHS=8 ARCH=test_resnet OUT=DIR recipes/balance.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2 3 4}
methods=${METHODS:-none uniform uniform-1.5 mmpareto umt agm pmr opm dgl relearning g-blend smv g2d ogm-ge ogm-ge-late ume}
out=${OUT:-recipes/out/balance}
epochs=${FUSED_EPOCHS:-8}
small=(--num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip --batch-size 32 --schedule cosine --workers 0)
alone=("${small[@]}" --epochs "${EPOCHS:-8}" --lr 0.05)
joint=("${small[@]}" --epochs "$epochs" --lr 0.05 --mask none)

store=$out/store

# The published epochs are those of runs of 100; here they stand for about the same shares of a shorter run.
settings() {
  local quarter after=()
  case $1 in
    uniform-1.5) echo "--balance-gamma 1.5" ;; # what mmpareto does to gradients that agree, without its direction
    umt) echo "--balance-set window=0,$((epochs * 80 / 100)) --teacher-audio $2/audio --teacher-visual $2/visual" ;;
    agm) echo "--balance-set window=0,$((epochs * 20 / 100))" ;;
    pmr) echo "--balance-set window=0,$((epochs * 70 / 100))" ;;
    opm | smv | ogm-ge-late) echo "--balance-set begin=$((epochs / 8))" ;;
    dgl) echo "--clip-grad 40" ;;
    relearning)
      for quarter in 1 2 3; do after+=("$(((epochs * quarter + 3) / 4))"); done
      echo "--balance-set after=$(IFS=, && echo "${after[*]}")"
      ;;
    g-blend) echo "--balance-set every=$((epochs < 4 ? 1 : epochs / 4))" ;;
    g2d) echo "--teacher-audio $2/audio --teacher-visual $2/visual" ;;
    ogm-ge) echo "--ogm-window 0 $((epochs * 50 / 100))" ;;
  esac
}

# One piece of work: a seed, and an encoder or a method.
work() {
  local run=$out/seed-$1 init device
  device=$(device)
  case $2 in
    audio | visual)
      init=$(avpt init --modality "$2" --weights random --arch "${ARCH:-test_resnet}" --seed "$1" --quiet \
        --out "$run/$2-init.safetensors")
      avpt finetune-unimodal "$store" --modality "$2" --seed "$1" --init "$init" "${alone[@]}" \
        --device "$device" --quiet --out "$run/$2"
      ;;
    ume)
      avpt evaluate "$run/audio" "$store" --ensemble "$run/visual" --device "$device" --workers 0 --quiet --out "$run/ume.json"
      ;;
    *)
      # shellcheck disable=SC2046 # options, none of which has a space
      avpt fuse-train "$store" --audio "$run/audio-init.safetensors" --visual "$run/visual-init.safetensors" \
        --seed "$1" "${joint[@]}" --balance "${2%-1.5}" $(settings "$2" "$run") --device "$device" --quiet --out "$run/$2"
      ;;
  esac
}

if [ "${1:-}" = work ]; then
  work "$2" "$3"
  exit
fi

# JOBS pieces of work at a time, each on a device of its own; what a round reads the one before it has written.
round() {
  for seed in $seeds; do
    for what in "$@"; do echo "$seed $what"; done
  done | at_once recipes/balance.sh
}
manifest=${MANIFEST:-$(digits "$out/digits" --snr "${SNR:-0}" --picture-noise "${PICTURE_NOISE:-0.8}")}
avpt preprocess "$manifest" --out "$store" --mel-bins 64 --spectrogram-frames 64 --frame-size 32
round audio visual
read -ra named <<<"$methods"
round "${named[@]}"

rows=() runs=() rivals=() against=()
for what in audio visual "${named[@]}"; do
  written=()
  for seed in $seeds; do written+=("$out/seed-$seed/$what"); done
  case $what in
    ume) written=("${written[@]/%/.json}") ;;
    none | uniform) rivals+=(--against "$what") against+=(--against "${written[0]}") ;;
  esac
  case $what in audio | visual | ume) ;; *) runs+=("${written[@]}") ;; esac
  rows+=("$what=${written[*]}")
done
python recipes/results_table.py "${rivals[@]}" "${rows[@]}"
avpt compare "${runs[@]}" --metric accuracy "${against[@]}"
