"""`python -m llmrec`, the same as `llmrec`."""

import sys

from llmrec.cli.main import main

sys.exit(main())
