"""`llmrec export`: write a bundle for a server of language models."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import log_to_stderr, say

SUMMARY = "write merged weights and the items for FlashRec, SGLang or vLLM"


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the files, print the command that starts the server."""
    parser = PlainParser(
        prog="llmrec export",
        description="Write a bundle as an ordinary checkpoint, with the items in a form that the server reads. An "
        "adapter is merged into its base model. docs/serving_llm.md says what each server can do.",
    )
    add_model_flags(parser)
    parser.add_argument("--target", required=True, choices=["flashrec", "sglang", "vllm"], help="the server")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must be new or empty")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="data type of the weights; auto: that of the bundle (default auto)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    options = parser.parse_args(arguments)
    log_to_stderr()
    from llmrec.serve.export import export

    header = export(load_model(options), options.target, Path(options.out), options.dtype)
    if options.json:
        print(json.dumps(header))
        return
    say(f"{header['items']:,} items and a {header['dtype']} model for {options.target} in {options.out}")
    say(shlex.join(header["command"]))


COMMAND = Command(SUMMARY, main)
