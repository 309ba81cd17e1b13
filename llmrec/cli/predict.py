"""`llmrec predict`: recommendations for every user of a file."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.cli.command import Command, PlainParser, add_model_flags
from llmrec.cli.recommend import add_request_flags, load_ranked, request_fields
from llmrec.console import log_to_stderr, say

if TYPE_CHECKING:
    from llmrec.serve.predict import Make


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write the recommendations, print how many users there were."""
    write(parser().parse_args(arguments))


def write(options: argparse.Namespace, maker: "Callable[[dict[str, Any]], Make] | None" = None) -> None:
    """Write the recommendations that the flags of `parser` ask for, and print how many users there were.

    Args:
        options: the parsed flags.
        maker: gets the fields of the requests, and returns the `make` of `predict`.
    """
    log_to_stderr()
    from llmrec.recommender import bundle
    from llmrec.recommender.request import Request
    from llmrec.serve.predict import predict

    fields = request_fields(options)
    Request(history=(), **fields)  # a wrong flag is named before the model is loaded
    decode = {name: getattr(options, name) for name in ("device", "beams", "ranking", "cold_bonus")}
    folder = bundle.locate(options.model)
    make = None if maker is None else maker(fields)
    source, output = Path(options.input), Path(options.output)
    found = predict(lambda: load_ranked(options), folder, source, output, decode, make, **fields)
    if found is None:
        return
    if options.json:
        print(json.dumps({**asdict(found), "seconds": round(found.seconds, 2), "output": options.output}))
        return
    say(f"{found.users:,} users in {options.output}, {found.resumed:,} of them answered before, {found.seconds:.1f} s")


def parser(prog: str = "llmrec predict") -> PlainParser:
    """The flags of the command."""
    parser = PlainParser(
        prog=prog,
        description="Recommend items for every user of a file. The output has one row per user and rank, with the "
        "columns user_id, rank, item_id, score, title and note. A command that was stopped goes on from its last "
        "finished chunk of users, if it is given again with the same flags and files. Several processes share the work "
        "under `accelerate launch --num_processes N -m llmrec predict ...`.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="parquet, CSV, TSV or JSON lines with one row per user and the columns user_id and history: a list of "
        "item ids, oldest first, or in a text with spaces between them; the column prompt may hold a user's request "
        "in plain words",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="the file to write: .parquet, .csv, .tsv or .jsonl"
    )
    add_request_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


COMMAND = Command("recommend items for every user of a file", main, resumable=True)
