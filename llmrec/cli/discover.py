"""`llmrec discover`: find missing items, that is likely semantic IDs that no item of the catalogue has."""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import say
from llmrec.errors import UserError, system_words

if TYPE_CHECKING:
    from llmrec.recommender.discover import Discovery


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, load the bundle, search, print the descriptions."""
    options = _parser().parse_args(arguments)
    if not options.history and options.histories is None and options.prompt is None:
        raise UserError('nothing to go by: give --history ID ..., --histories FILE, --prompt "text", or both.')
    if options.beams < 1:
        raise UserError(f"--beams {options.beams}: expected at least 1.")
    histories = _histories(options)
    from llmrec.recommender.discover import discover

    recommender = load_model(options, beams=options.beams)
    started = time.perf_counter()
    found = discover(recommender, histories, options.prompt, options.k, options.neighbours)
    seconds = time.perf_counter() - started
    if options.json:
        print(json.dumps({"discoveries": [asdict(each) for each in found], "seconds": round(seconds, 4)}))
        return
    say(*_lines(found))


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="llmrec discover",
        description="Find semantic IDs that no item has and that the model would recommend; describe them in words.",
    )
    add_model_flags(parser)
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--history", nargs="+", metavar="ID", help="item ids of one user, oldest first")
    who.add_argument(
        "--histories",
        metavar="FILE",
        help="several users: the item ids of one user per line, separated by spaces or commas, or a JSON list if ids "
        "contain these",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the request in plain words")
    parser.add_argument("--k", type=int, default=10, help="number of results (default 10)")
    parser.add_argument(
        "--neighbours", type=int, default=5, metavar="N", help="nearest items that describe each result (default 5)"
    )
    parser.add_argument("--beams", type=int, default=100, help="beams of the search (default 100); at least --k")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


def _histories(options: Namespace) -> list[list[str]]:
    """The histories of --history or --histories, in the order of the file's lines."""
    if options.histories is None:
        return [options.history] if options.history else []
    path = Path(options.histories)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--histories {path}: can't be read ({system_words(error)}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--histories {path}: can't be read as text: {error}.") from None
    from llmrec.serve.predict import history_of

    texts = [line if line.lstrip().startswith("[") else line.replace(",", " ") for line in lines]
    histories = [history_of(text, f"--histories {path}, line {number}:") for number, text in enumerate(texts, 1)]
    if not histories:
        raise UserError(f"--histories {path}: empty, expected one person's item ids per line.")
    if [] in histories:
        line = histories.index([]) + 1
        raise UserError(f"--histories {path}, line {line}: no item ids; delete the line, or put a person's there.")
    return histories


def _lines(found: Sequence["Discovery"]) -> list[str]:
    """The output in plain text."""
    lines = []
    for each in found:
        lines.append(f"{each.rank:>3}  {each.semantic_id}  {each.score:8.3f}")
        lines += [f"     near   {near.similarity:5.2f}  {near.item_id:<12}  {near.title}" for near in each.neighbours]
        if each.words:
            lines.append(f"     words  {', '.join(each.words)}")
        if each.text:
            told = (f"{word.word} {word.probability:.3f}" for word in each.text)
            lines.append(f"     text   {', '.join(told)}")
        if each.says:
            lines.append(f"     says   {each.says}")
    return lines


COMMAND = Command("find likely semantic IDs that no item has, and describe them in words", main)
