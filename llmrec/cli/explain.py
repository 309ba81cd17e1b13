"""`llmrec explain`: describe an item's semantic ID, a prefix of semantic IDs, or a history in words."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import say


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, load the bundle, print the description."""
    options = _parser().parse_args(arguments)
    answer = _answer(options)
    if options.json:
        print(json.dumps(answer))
        return
    for name, value in answer.items():
        if value is None:
            continue
        lines = value if name in ("titles", "history") else [", ".join(value)] if name == "words" else [value]
        for line in lines:
            say(f"{name.replace('_', ' '):<12}{line}")


def _parser() -> PlainParser:
    parser = PlainParser(prog="llmrec explain", description="Describe the meaning of item tokens in words.")
    add_model_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--item",
        metavar="ID",
        help="print the model's description of this item, from its semantic ID alone, and its title",
    )
    what.add_argument(
        "--prefix",
        metavar="TOKENS",
        help='print what items whose semantic IDs begin with these tokens have in common, such as "<a_12><b_3>"',
    )
    what.add_argument(
        "--history",
        nargs="+",
        metavar="ID",
        help="print the model's description of the taste of a user with these items, oldest first",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


def _answer(options: Namespace) -> dict[str, Any]:
    from llmrec.recommender.explain import describe, explain, taste

    recommender = load_model(options)
    if options.item is not None:
        return asdict(explain(recommender, options.item))
    if options.history is not None:
        return asdict(taste(recommender, options.history))
    return asdict(describe(recommender, options.prefix))


COMMAND = Command("describe an item's semantic ID, a prefix of semantic IDs, or a history in words", main)
