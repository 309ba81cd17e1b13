"""For `accelerate launch [--num_processes N] scripts/finetune.py --config C --run DIR`: the same as `llmrec train`."""

import sys

from llmrec.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
