#!/usr/bin/env bash
# All checks: style, types, tests. Makes its own .venv. Arguments go to pytest: scripts/test.sh -m slow
# As many processes as cores, up to 8, run the tests, with up to 1.6 GiB each; in one process: scripts/test.sh -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh ".[offline,serve,docs,test,dev]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
workers=$(.venv/bin/python -c 'import os; print(min(8, os.cpu_count() or 1))')
# A file's tests stay in one process, which makes what they share once; the long files come first.
.venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
