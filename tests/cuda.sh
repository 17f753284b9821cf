#!/usr/bin/env bash
# What a CUDA device says of avpt: bytes, speed, memory. One JSON, rewritten after each step, and a table at the end.
#
#   tests/cuda.sh prepare                      where PyAV is and packages can be fetched; makes .cuda/, some 20 MB
#   tests/cuda.sh OUT                          where the device is, in a checkout with .cuda/; begins nothing new after 7.5 minutes
#   tests/cuda.sh OUT --device cpu --rehearse  the same at tiny sizes, so that no minute there is lost to a slip
#
# PYTHON names the interpreter: by default that of .venv, else python3. It needs torch, torchvision, torchaudio, h5py,
# safetensors, typer, rich, scikit-learn, matplotlib, jinja2 and pytest; neither PyAV nor timm.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = prepare ]; then
  source recipes/venv.sh
  activate
  rm -rf .cuda
  python tests/cuda/cuda_store.py .cuda
  avpt preprocess .cuda/manifest.csv --out .cuda/store --quiet
  avpt preprocess .cuda/manifest.csv --out .cuda/tiny --mel-bins 64 --spectrogram-frames 64 --frame-size 32 --quiet
  rm -r .cuda/films
  # what avpt needs besides and an image with torch may lack, for each Python that it may have
  for version in 3.11 3.12 3.13; do
    python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version $version \
      --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
      --platform manylinux_2_28_x86_64 --dest .cuda/wheels msgspec
  done
  du -sh .cuda
  exit
fi

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if ! "$python" -c 'import msgspec' 2>/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --find-links .cuda/wheels --no-deps --target "$site" msgspec
  export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" tests/cuda/checks.py "$@"
