# Sourced by recipes and by tests/run.sh: `install TARGET PROGRAM` makes .venv and installs the project into it,
# unless the program is already there; `activate` does so where no active environment has avpt; `digits FOLDER
# [OPTION ...]` makes the data of the small recipes there, with options of make_digits.py, and prints its manifest.
# Needs Python 3.11 or newer; PYTHON names one.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2
  return 1
}

install() {
  local python
  if [ -x ".venv/bin/avpt" ] && [ -x ".venv/bin/$2" ] && [ ! pyproject.toml -nt ".venv/installed-$2" ]; then
    return
  fi
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "making .venv with $($python --version)" >&2
    "$python" -m venv .venv
  fi
  echo "installing avpt into .venv (torch and its friends: a few minutes, once)" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$1"
  touch ".venv/installed-$2"
}

activate() {
  if [ ! -x "${VIRTUAL_ENV:-}/bin/avpt" ]; then
    install . avpt
    export PATH="$PWD/.venv/bin:$PATH"
  fi
}

digits() {
  python -c 'import espeakng_loader' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check espeakng-loader >&2
  python recipes/make_digits.py --out "$@"
}

at_once() { # SCRIPT: runs `SCRIPT work WORDS...` for each line of words on stdin, JOBS at a time
  xargs -P "${JOBS:-2}" --process-slot-var=SLOT -L 1 "$1" work
}

device() { # the one of DEVICES that is this piece of work's turn
  local devices
  read -ra devices <<<"${DEVICES:-auto}"
  echo "${devices[$((${SLOT:-0} % ${#devices[@]}))]}"
}
