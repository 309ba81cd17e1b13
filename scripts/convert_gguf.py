"""Write the model of a GGUF file as an ordinary Hugging Face checkpoint, for --base.model FOLDER.

python scripts/convert_gguf.py FILE.gguf FOLDER [--sha256 DIGITS]
"""

import argparse
import sys
from pathlib import Path

from llmrec.errors import UserError
from llmrec.model.base import convert_gguf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sha256", help="refuse a file with another SHA-256")
    options = parser.parse_args()
    try:
        convert_gguf(options.file, options.folder, options.sha256)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
