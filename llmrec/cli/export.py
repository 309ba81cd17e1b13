"""`llmrec export`: write a bundle for a server of language models."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

SUMMARY = "write merged weights and the items for FlashRec, SGLang or vLLM, or a Space that serves the page"


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the files, print the command that starts the server or publishes the Space."""
    parser = PlainParser(
        prog="llmrec export",
        description="Write a bundle as an ordinary checkpoint, with the items in a form that the server reads. An "
        "adapter is merged into its base model. docs/serving_llm.md says what each server can do. Or write a Space of "
        "the Hugging Face Hub, a container that runs `llmrec serve`: docs/serve.md.",
    )
    add_model_flags(parser)
    parser.add_argument("--target", required=True, choices=["flashrec", "sglang", "vllm", "space"], help="the server")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; it must be new or empty")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="data type of the weights; auto: that of the bundle (default auto)",
    )
    parser.add_argument("--wheel", metavar="FILE", help="for a Space: a wheel of llmrec, from `pip wheel . --no-deps`")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    options = parser.parse_args(arguments)
    log_to_stderr()
    if options.target == "space":
        _export_space(options)
        return
    if options.wheel is not None:
        raise UserError(f"--wheel {options.wheel}: is for --target space; leave it out.")
    from llmrec.serve.export import export

    header = export(load_model(options), options.target, Path(options.out), options.dtype)
    if options.json:
        print(json.dumps(header))
        return
    say(f"{header['items']:,} items and a {header['dtype']} model for {options.target} in {options.out}")
    say(shlex.join(header["command"]))


def _export_space(options: argparse.Namespace) -> None:
    """Write a Space, print the command that publishes it."""
    from llmrec.serve.space import export_space

    if options.wheel is None:
        raise UserError("--target space needs --wheel FILE, which the Space installs: pip wheel . --no-deps.")
    defaults = {"base": None, "device": "auto", "trust_remote_code": False, "dtype": "auto"}
    for name, default in defaults.items():
        if (value := getattr(options, name)) != default:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: --target space writes files and loads no model; leave it out.")
    written = export_space(options.model, Path(options.wheel), Path(options.out))
    if options.json:
        print(json.dumps(written))
        return
    say(f"A Space for {written['model']} in {options.out}; publish it with")
    say(f"hf upload org/name {shlex.quote(options.out)} . --repo-type space")


COMMAND = Command(SUMMARY, main)
