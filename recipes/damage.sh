#!/usr/bin/env bash
# Does a strong encoder damage the other in joint training, and what helps? Digits of which either the sound or the
# picture is hard. Joint training straight from the start of both encoders (the paper's baseline), as many epochs as
# stage 1 and stage 2 take together, is set against stage 1 alone, against balancing methods and against FusT; linear
# probes say what became of the encoders.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 600 train, 150 val, 1,000 test clips
# Hardware  two CPU cores; DEVICES="cuda:0 cuda:1" takes devices in turn
# Minutes   about 150 of one core for START=random and the methods of the table; reckoned from its parts
# Expect    pictures hard: joint 0.73, uniform 0.87, two stages 0.81, 0.83 with masks; the sound encoder's linear probe
#           0.82 alone, 0.69 after joint training, 0.83 after two stages. At the best rate of each, joint 0.81, two
#           stages 0.81, 0.86 with masks, uniform 0.91; tables, figures and the METHODS for it in recipes/README.md
#
# Run it again after an interruption: what is finished is kept, what was begun goes on.
#
# METHODS: `NAME@RATE` has another learning rate, and of several rates of a method the one that is best on val is shown;
# so it is with options of the masks, `fust-adaptive-RATIO-ETA-THRESHOLD`. HARD: which modality is hard. START: what the
# encoders start from: `random`; `other`, the encoder of the other modality, trained alone from random; `imagenet`, the
# weights of ARCH in the file WEIGHTS.
#
# HARD="visual audio" START="random other" SEEDS="0 1 2 3 4" METHODS="..." JOBS=2 ARCH=test_resnet OUT=DIR recipes/damage.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2 3 4}
starts=${START:-random other}
hard=${HARD:-visual audio}
methods=${METHODS:-none uniform mmpareto ogm-ge umt ume fust-none fust-uniform fust-adaptive fust-released}
out=${OUT:-recipes/out/damage}
arch=${ARCH:-test_resnet}
first=${EPOCHS:-12} second=${FUSED_EPOCHS:-8}
both=$((first + second))
small=(--num-frames 1 --image-size "${IMAGE_SIZE:-32}" --crop-scale 1 1 --no-flip --batch-size 32 --schedule cosine --workers 0)
patches=(--audio-patch 8 --visual-patch 4)

start_of() { # MODALITY: options of `avpt init`
  local modality=$1
  case $start in
    random) echo "--weights random --arch $arch" ;;
    other)
      [ "$modality" = audio ] && modality=visual || modality=audio
      echo "--weights $out/$which/random/seed-$seed/$modality"
      ;;
    imagenet) echo "--weights ${WEIGHTS:?} --arch $arch" ;;
  esac
}

# One piece of work: which modality is hard, what encoders start from, a seed, and what to make.
work() {
  local which=$1 start=$2 seed=$3 what=$4
  local run=$out/$which/$start/seed-$seed store=$out/$which/store joint modality ratio eta threshold
  local to=(--seed "$seed" --device "$(device)" --quiet)
  local stage1=(--audio "$run/audio" --visual "$run/visual") name=${what%@*} rate=
  [ "$name" = "$what" ] || rate=${what#*@}
  case $name in
    audio | visual)
      # shellcheck disable=SC2046 # options, none of which has a space
      avpt init --modality "$what" $(start_of "$what") --seed "$seed" --quiet --out "$run/$what-init.safetensors"
      avpt finetune-unimodal "$store" --modality "$what" --init "$run/$what-init.safetensors" "${small[@]}" "${to[@]}" \
        --epochs "$first" --lr "${LR:-0.05}" --out "$run/$what"
      ;;
    confidence) avpt score-confidence "${stage1[@]}" "${patches[@]}" --quiet --out "$run/confidence.safetensors" ;;
    ume) avpt evaluate "$run/audio" "$store" --ensemble "$run/visual" --workers 0 --quiet --out "$run/ume.json" ;;
    probe-*)
      IFS=- read -r _ modality joint <<<"$what"
      avpt probe "$run/${joint:-$modality}" "$store" --modality "$modality" --workers 0 --quiet \
        --out "$run/$what.safetensors"
      ;;
    fust-*)
      joint=("${stage1[@]}" "${small[@]}" "${to[@]}" --epochs "$second")
      joint+=(--lr "${rate:-${FUSED_LR:-0.01}}")
      case $name in
        fust-none) joint+=(--mask none) ;;
        fust-released) joint+=(--mask adaptive --mask-rule released) ;;
        fust-adaptive-*)
          IFS=- read -r _ _ ratio eta threshold <<<"$name"
          joint+=(--mask adaptive --mask-ratio "$ratio" --mask-eta "$eta" --mask-threshold "$threshold")
          ;;
        *) joint+=(--mask "${name#fust-}") ;;
      esac
      [ "$name" = fust-none ] || joint+=(--confidence "$run/confidence.safetensors")
      avpt fuse-train "$store" "${joint[@]}" --out "$run/$what"
      ;;
    *)
      joint=(--audio "$run/audio-init.safetensors" --visual "$run/visual-init.safetensors" "${small[@]}" "${to[@]}")
      joint+=(--mask none --epochs "$both" --lr "${rate:-${LR:-0.05}}" --balance "$name")
      case $name in
        umt)
          joint+=(--balance-set "window=0,$((both * 80 / 100))")
          joint+=(--teacher-audio "$run/audio" --teacher-visual "$run/visual")
          ;;
        ogm-ge) joint+=(--ogm-alpha 0.8 --ogm-window 0 $((both * 50 / 100))) ;;
      esac
      avpt fuse-train "$store" "${joint[@]}" --out "$run/$what"
      ;;
  esac
}

if [ "${1:-}" = work ]; then
  work "${@:2}"
  exit
fi

# What a round reads the one before it has written.
round() { # START WHAT...
  for which in $hard; do
    for seed in $seeds; do
      for what in "${@:2}"; do echo "$which $1 $seed $what"; done
    done
  done | at_once recipes/damage.sh
}

for which in $hard; do
  case $which in
    visual) noise=(--snr "${SNR:--3}" --picture-noise "${PICTURE_NOISE:-0.5}") ;;
    audio) noise=(--snr "${SNR:--8}" --picture-noise "${PICTURE_NOISE:-0.3}") ;;
  esac
  manifest=${MANIFEST:-$(digits "$out/$which/digits" --per-class "${PER_CLASS:-60}" "${noise[@]}")}
  avpt preprocess "$manifest" --out "$out/$which/store" --mel-bins 64 --spectrogram-frames 64 --frame-size 32
done

read -ra named <<<"$methods"
for start in $starts; do
  round "$start" audio visual
  round "$start" confidence
  round "$start" "${named[@]}"
  probes=(probe-audio probe-visual)
  for what in "${named[@]}"; do
    case ${what%@*} in none | uniform | fust-none | fust-adaptive) probes+=("probe-audio-$what" "probe-visual-$what") ;; esac
  done
  round "$start" "${probes[@]}"
done

for which in $hard; do
  for start in $starts; do
    printf '\n%s is hard, encoders start from %s\n' "$which" "$start"
    rows=()
    for what in audio visual "${named[@]}"; do
      written=()
      for seed in $seeds; do written+=("$out/$which/$start/seed-$seed/$what"); done
      case $what in
        ume) rows+=("ume=${written[*]/%/.json}") ;;
        fust-adaptive-*) rows+=("adaptive, best on val/${what#fust-adaptive-}=${written[*]}") ;;
        audio | visual) rows+=("$what=${written[*]}") ;;
        *@*) rows+=("${what%@*}/lr ${what#*@}=${written[*]}") ;;
        fust-*) rows+=("$what/lr ${FUSED_LR:-0.01}=${written[*]}") ;;
        *) rows+=("$what/lr ${LR:-0.05}=${written[*]}") ;;
      esac
    done
    python recipes/results_table.py --against none "${rows[@]}"
    for modality in audio visual; do
      rows=()
      for what in "" "${named[@]/#/-}"; do
        written=()
        for seed in $seeds; do written+=("$out/$which/$start/seed-$seed/probe-$modality$what.safetensors"); done
        [ ! -f "${written[0]}" ] || rows+=("probe $modality${what:- alone}=${written[*]}")
      done
      python recipes/results_table.py --against "probe $modality alone" "${rows[@]}"
    done
  done
done
