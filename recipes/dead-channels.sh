#!/usr/bin/env bash
# Dead channels made on purpose: a visual encoder whose BatchNorm weight decay drives to zero, carried over to sound.
#
# Data      made by recipes/make_digits.py: real handwriting, synthesised speech; 400 train, 100 val, 1,000 test clips.
#           Real recordings besides where their archives are given: FSDD=fsdd_recordings.tar.gz, digits said by six
#           people, of whom one is tested and another is val, in turn by seed; ESC10=esc10_subset.tar, environmental
#           sounds in five folds, of which one is tested and the next is val, in turn by seed
# Hardware  two CPU cores; DEVICES="cuda:0 cuda:1" takes devices in turn
# Minutes   about 8 for each seed, of one core, for digits alone; reckoned from its parts
# Expect    sound 0.90 from random and with BatchNorm kept, 0.92 with blend, 0.93 with abri, three seeds; recipes/README.md
#
# Encoders that are pre-trained at length on millions of pictures come with such channels; this one gets them in a
# minute, as weight decay acts on BatchNorm too. `avpt inspect` then shows what the paper's Figure 2 shows. Each way to
# start is trained at each learning rate of LRS, and judged at the one that is best for it on val.
#
# WEIGHTS=FILE, of ARCH, takes the place of that encoder.
#
# Run it again after an interruption: what is finished is kept, what was begun goes on.
#
# SEEDS="0 1 2 3 4" LRS="0.02 0.05 0.1" PRETRAINING=60 EPOCHS=8 ARCH=test_resnet JOBS=2 OUT=DIR recipes/dead-channels.sh
# Figures are in OUT/figures.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate

seeds=${SEEDS:-0 1 2 3 4}
rates=${LRS:-0.02 0.05 0.1}
out=${OUT:-recipes/out/dead-channels}
arch=${ARCH:-test_resnet}
ways=(random keep reset reset-abnormal blend abri)
sounds=(digits ${FSDD:+fsdd} ${ESC10:+esc10})
# no crop and no flip: on digits they ruin the labels
train=(--num-frames 1 --image-size 32 --crop-scale 1 1 --no-flip --schedule cosine --workers 0 --quiet)

# One piece of work: `pretrained SEED`, or a sound, a seed, how its encoder starts, and a learning rate.
work() {
  local run=$out/seed-$2 seed=$2 how=${3:-} weights=${WEIGHTS:-$out/seed-$2/pretrained} init
  if [ "$1" = pretrained ]; then
    if [ -z "${WEIGHTS:-}" ]; then
      avpt init --modality visual --weights random --arch "$arch" --seed "$seed" --quiet \
        --out "$run/random-visual.safetensors"
      avpt finetune-unimodal "$out/digits/store" --modality visual --init "$run/random-visual.safetensors" \
        --seed "$seed" "${train[@]}" --batch-size 32 --lr 0.05 --epochs "${PRETRAINING:-60}" --weight-decay 0.1 \
        --decay-norm --device "$(device)" --out "$run/pretrained"
    fi
    for how in "${ways[@]}"; do
      init=(--weights "$weights" --bn "$how")
      [ "$how" != random ] || init=(--weights random)
      avpt init --modality audio --arch "$arch" "${init[@]}" --seed "$seed" --quiet --out "$run/$how.safetensors"
    done
  else
    avpt finetune-unimodal "$(store_of "$1" "$seed")" --modality audio --init "$run/$how.safetensors" --seed "$seed" \
      "${train[@]}" --batch-size "$([ "$1" = esc10 ] && echo 8 || echo 32)" --lr "$4" --epochs "${EPOCHS:-8}" \
      --device "$(device)" --out "$out/$1/seed-$seed/$how-$4"
  fi
}

store_of() { # SOUND SEED
  [ "$1" = digits ] && echo "$out/digits/store" || echo "$out/$1/seed-$2/store"
}

if [ "${1:-}" = work ]; then
  work "${@:2}"
  exit
fi

# A manifest of recordings on stdin, `FILE LABEL GROUP TAKE`: the group whose turn it is by seed is tested, all takes of
# it; the next one is val, the rest train, ten takes of each.
divide() { # SEED GROUP...
  awk -F '\t' -v seed="$1" -v groups="${*:2}" 'BEGIN { count = split(groups, group, " "); print "id,label,split,audio" }
    { split_of = $3 == group[seed % count + 1] ? "test" : $3 == group[(seed + 1) % count + 1] ? "val" : "train"
      if ($4 < 10 || split_of == "test") printf "%s,%s,%s,%s\n", NR, $2, split_of, $1 }'
}

manifest=${MANIFEST:-$(digits "$out/digits/films")}
avpt preprocess "$manifest" --out "$out/digits/store" --mel-bins 64 --spectrogram-frames 64 --frame-size 32
for sound in "${sounds[@]:1}"; do
  mkdir -p "$out/$sound"
  case $sound in
    fsdd) archive=$FSDD frames=64 groups=(george jackson lucas nicolas theo yweweler) ;;
    esc10) archive=$ESC10 frames=512 groups=(1 2 3 4 5) ;;
  esac
  [ -d "$out/$sound/recordings" ] || {
    mkdir -p "$out/$sound/.part"
    tar -xf "$archive" -C "$out/$sound/.part"
    mv "$out/$sound/.part" "$out/$sound/recordings"
  }
  for seed in $seeds; do
    mkdir -p "$out/$sound/seed-$seed"
    (
      cd "$out/$sound"
      case $sound in
        fsdd) find recordings -name '*.wav' | sort | awk -F '[/_.]' -v OFS='\t' '{ print $0, $(NF - 3), $(NF - 2), $(NF - 1) }' ;;
        esc10) find recordings -name '*.ogg' | sort | awk -F / -v OFS='\t' '{ print $0, $(NF - 1), substr($NF, 1, 1), 0 }' ;;
      esac | divide "$seed" "${groups[@]}" >"manifest-$seed.csv"
    )
    avpt preprocess "$out/$sound/manifest-$seed.csv" --out "$out/$sound/seed-$seed/store" \
      --mel-bins 64 --spectrogram-frames "$frames"
  done
done

for seed in $seeds; do echo "pretrained $seed"; done | at_once recipes/dead-channels.sh
for sound in "${sounds[@]}"; do
  for seed in $seeds; do
    for how in "${ways[@]}"; do
      for rate in $rates; do echo "$sound $seed $how $rate"; done
    done
  done
done | at_once recipes/dead-channels.sh

read -r seed _ <<<"$seeds"
read -r rate _ <<<"$rates"
for how in keep blend abri; do
  avpt inspect "$out/seed-$seed/$how.safetensors" --after "$out/digits/seed-$seed/$how-$rate" --store "$out/digits/store" \
    --zero 1e-6 --overwrite --plot "$out/figures/$how"
done
runs=("$out"/digits/seed-*/*-"$rate")
avpt compare "${runs[@]}" --overwrite --plot "$out/figures" --markdown "$out/comparison.md"

[ -n "${WEIGHTS:-}" ] || python recipes/results_table.py \
  "pictures, pre-trained=$(for seed in $seeds; do printf '%s ' "$out/seed-$seed/pretrained"; done)"
for sound in "${sounds[@]}"; do
  rows=()
  for how in "${ways[@]}"; do
    for rate in $rates; do
      rows+=("$sound, $how/lr $rate=$(for seed in $seeds; do printf '%s ' "$out/$sound/seed-$seed/$how-$rate"; done)")
    done
  done
  python recipes/results_table.py --against "$sound, keep" "${rows[@]}"
done
