#!/usr/bin/env bash
# Makes .venv and installs llmrec with the extras named as arguments. Sourced by quickstart.sh and test.sh.
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "llmrec needs Python 3.11 or newer; set PYTHON to one (found $("$PYTHON" --version))" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# A CPU build of torch where a plain requirement would bring CUDA: the pinned version is installed first.
.venv/bin/python -c 'import torch' 2>/dev/null ||
  .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch ||
  exit 1
.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e "$1"
