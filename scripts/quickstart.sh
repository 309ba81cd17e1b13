#!/usr/bin/env bash
# From nothing to a measured recommender on the embedded default, with three worked recommendations.
# Makes its own .venv; everything it produces is in runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh "."
LLMREC=.venv/bin/llmrec
RUN=runs/quickstart
$LLMREC run --config configs/quickstart.yaml --run $RUN
.venv/bin/python scripts/show_recommendations.py --run $RUN
