#!/usr/bin/env bash
# Everything that must hold: makes .venv, installs avpt and the checkers, runs ruff, mypy and pytest.
# Arguments go to pytest: `tests/run.sh -k store`, `tests/run.sh -m slow`.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
install '.[dev]' pytest

# tests/test_ffmpeg.py compares with the ffmpeg command; it skips where there is none
if ! command -v ffmpeg >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -q && apt-get install -y -q ffmpeg; } >/dev/null 2>&1 || true
fi

export OMP_NUM_THREADS=1  # tiny tensors: more threads only wait for one another

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest -n auto "$@"
