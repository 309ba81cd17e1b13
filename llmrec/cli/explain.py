"""`llmrec explain`: an item's codes, codes that items begin with, or a history, in words."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import say


def main(arguments: Sequence[str]) -> None:
    """Parse, load the bundle, answer."""
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
    parser = PlainParser(prog="llmrec explain", description="What item tokens stand for, in words.")
    add_model_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--item", metavar="ID", help="what the model says this item is, beside its title")
    what.add_argument("--prefix", metavar="TOKENS", help='what items that start so share, such as "<a_12><b_3>"')
    what.add_argument("--history", nargs="+", metavar="ID", help="what somebody likes who took these, oldest first")
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


COMMAND = Command("an item's codes, codes that items begin with, or a history, in words", main)
