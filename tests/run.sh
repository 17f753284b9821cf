#!/usr/bin/env bash
# Everything that must hold: makes .venv, installs avpt and the checkers, runs ruff, mypy and pytest.
# Arguments go to pytest: `tests/run.sh -k store`, `tests/run.sh -m slow`.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/venv.sh
install '.[dev]' pytest

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy & # while packages are fetched

# tests/test_ffmpeg.py compares with the ffmpeg command, tests/test_report.py opens pages in Chromium; they skip where
# there is none
if ! { command -v ffmpeg && command -v chromium; } >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -q && apt-get install -y -q --no-install-recommends ffmpeg chromium; } >/dev/null 2>&1 || true
fi
wait "$!"

export OMP_NUM_THREADS=1  # tiny tensors: more threads only wait for one another
.venv/bin/pytest -n "$(($(nproc) * 2))" "$@" # more than cores: many tests wait for processes of their own
