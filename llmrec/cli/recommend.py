"""`llmrec recommend`: recommend items for a history, a request in plain words, or both."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llmrec.cli.command import Command, PlainParser, add_model_flags, load_model
from llmrec.console import printable, say
from llmrec.decode.config import RankingName
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.recommender.recommender import Recommender
    from llmrec.recommender.request import Request
    from llmrec.recommender.untrained import ExpertRecommender


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, load the bundle, print the recommendations."""
    options = _parser().parse_args(arguments)
    request = _request(options)
    recommender = _recommender(options)
    started = time.perf_counter()
    items = recommender.answer(request)
    seconds = time.perf_counter() - started
    if options.json:
        answer = {
            "items": [item.to_dict() for item in items],
            "reason": items.reason_with_flags,
            "notes": items.notes,
            "seconds": round(seconds, 4),
        }
        print(json.dumps(answer))
        return
    for item in items:
        say(f"{item.rank:>3}  {item.item_id:<12}  {item.score:8.3f}  {item.title}")
    for line in [*items.notes, *([items.reason_with_flags] if items.reason_with_flags else [])]:
        print(printable(line), file=sys.stderr)


def _recommender(options: Namespace) -> "Recommender | ExpertRecommender":
    """The bundle of `--model`, or the run's; before it is trained, the experts of the run.

    Raises:
        UserError: both flags are given or none, or the run has neither bundle nor experts.
    """
    if (options.model is None) == (options.run is None):
        raise UserError("--model, --run: give one of them, a bundle or the folder of a run.")
    if options.run is not None:
        from llmrec.data.files import require_folder
        from llmrec.recommender.untrained import ExpertRecommender

        run = require_folder(options.run, "--run")
        model, experts = run / "model", run / "experts"
        if not (model / "manifest.json").exists():
            if not (experts / "manifest.json").exists():
                raise UserError(
                    f"--run {run}: has no model yet, and no experts that could answer without it; run "
                    "`llmrec run` on it, or name --experts.models there."
                )
            if options.ranking != "auto":
                raise UserError(f"--ranking {options.ranking}: the model of {run} is not trained yet; leave it out.")
            print(printable(f"{model}: not there yet; the experts of the run answer."), file=sys.stderr)
            return ExpertRecommender.from_run(run / "data", experts)
        options.model = str(model)
    return load_ranked(options)


def _parser() -> PlainParser:
    parser = PlainParser(prog="llmrec recommend", description="Recommend items of a bundle's catalogue.")

    add_model_flags(parser, or_run=True)
    parser.add_argument(
        "--history", nargs="*", action="extend", metavar="ID", help="item ids, oldest first; none: a user without any"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the request in plain words")
    add_request_flags(parser)
    parser.add_argument(
        "--boost", metavar="FILE", help="table with columns item_id and offset; the offset is added to the score"
    )
    _several(parser, "--max-per", "FIELD=M", "at most M results with the same text in this field")
    parser.add_argument("--max-per-code", type=int, metavar="M", help="at most M results with the same first code")
    parser.add_argument(
        "--phrasings",
        type=int,
        default=1,
        help="number of phrasings of the prompt; the mean of their scores counts (default 1)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="find the exact k best items by the probability of their codes alone, with more forward passes",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


def _several(parser: PlainParser, flag: str, word: str, meaning: str) -> None:
    parser.add_argument(flag, nargs="+", action="extend", metavar=word, help=meaning)


def add_request_flags(parser: PlainParser) -> None:
    """Add the flags that `recommend` and `predict` share; `request_fields` and `load_ranked` read them."""
    parser.add_argument("--k", type=int, default=10, help="number of results (default 10)")
    _several(parser, "--exclude", "ID", "items that are never recommended")
    parser.add_argument("--include-seen", action="store_true", help="items of the history may also be recommended")
    _several(parser, "--allow", "ID", "recommend only these items")
    _several(parser, "--where", "FIELD=VALUE", "recommend only items whose field has this value")
    parser.add_argument(
        "--unknown",
        choices=["skip", "fail"],
        default="skip",
        help="items of the history that the catalogue lacks: leave them out and say so (skip, the default), or stop "
        "with an error (fail)",
    )
    parser.add_argument(
        "--empty-history",
        choices=["popularity", "model"],
        default="popularity",
        help="how a history without any item of the catalogue is answered: by the items' training events (popularity, "
        "the default), or by the model after an empty history (model)",
    )
    parser.add_argument("--beams", type=int, default=20, help="beams of the search (default 20); at least --k")
    parser.add_argument(
        "--ranking",
        choices=["auto", *get_args(RankingName)],
        default="auto",
        help="how items are ranked, see `llmrec run --help-all`, --decode.ranking (default auto)",
    )
    parser.add_argument(
        "--cold-bonus",
        "--new-bonus",  # its name in version 0.1
        type=float,
        default=0.0,
        metavar="X",
        help="ranking fusion: X is added to the score of cold items, which have no training events (default 0)",
    )


def request_fields(options: Namespace) -> dict[str, Any]:
    """The fields of a `Request` from the flags of `add_request_flags`."""
    return {
        "k": options.k,
        "exclude": options.exclude or (),
        "include_seen": options.include_seen,
        "where": _pairs("--where", options.where or (), "brand=Weleda"),
        "allow": options.allow,
        "unknown": options.unknown,
        "empty_history": options.empty_history,
    }


def load_ranked(options: Namespace) -> "Recommender":
    """Load the bundle that the flags of `add_model_flags` choose, with the ranking of `add_request_flags`.

    Raises:
        UserError: the number of beams is below 1, the bundle can't be loaded, or a bonus is given that its ranking
            does not know.
    """
    if options.beams < 1:
        raise UserError(f"--beams {options.beams}: expected at least 1.")
    recommender = load_model(options, beams=options.beams, ranking=options.ranking, cold_bonus=options.cold_bonus)
    if options.cold_bonus and (name := recommender.ranker.name) != "fusion":
        raise UserError(
            f"--cold-bonus {options.cold_bonus:g} is for the ranking fusion, and this model ranks by {name}; add "
            "--ranking fusion, or leave it out."
        )
    return recommender


def _request(options: Namespace) -> "Request":
    """Make the request from the flags."""
    from llmrec.recommender.request import Request

    limits = _pairs("--max-per", options.max_per or (), "brand=2")
    for field, most in limits.items():
        if not most.isdecimal():
            raise UserError(f"--max-per {field}={most}: expected FIELD=M with a whole number M, such as brand=2.")
    return Request(
        history=options.history,
        prompt=options.prompt,
        offsets=None if options.boost is None else _offsets(Path(options.boost)),
        max_per_field={field: int(most) for field, most in limits.items()},
        max_per_code=options.max_per_code,
        exact=options.exact,
        phrasings=options.phrasings,
        **request_fields(options),
    )


def _pairs(flag: str, words: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        field, sign, value = word.partition("=")
        if not sign or not field:
            raise UserError(f"{flag} {word}: expected FIELD=VALUE, such as {example}.")
        if field in pairs:
            raise UserError(f"{flag} {word}: {field} has been given already, as {pairs[field]}; name a field once.")
        pairs[field] = value
    return pairs


def _offsets(path: Path) -> dict[str, float]:
    """Read the offsets of a table: item id -> offset.

    Raises:
        UserError: the table can't be read, lacks a column, or has a row that is wrong.
    """
    from llmrec.data.bad_rows import RowsError, TextOptions
    from llmrec.data.files import read_table, require_column, row_places
    from llmrec.data.ids import id_column

    def wrong(row: int, reason: str) -> UserError:
        return UserError(f"--boost {path}, {row_places(path, [row], TextOptions())[0]}: {reason}.")

    frame = read_table(path, "--boost", used=("item_id", "offset"))
    for name in ("item_id", "offset"):
        require_column(frame, name, path, "--boost")
    try:
        ids = id_column(frame["item_id"], f"--boost {path}").to_list()
    except RowsError as error:
        raise wrong(error.rows[0], error.reason(error.rows[0])) from None
    offsets: dict[str, float] = {}
    for row, (item, offset) in enumerate(zip(ids, frame["offset"].to_list(), strict=True)):
        if item in offsets:
            raise wrong(row, f"item {item} stands there twice; keep one of its offsets")
        try:
            offsets[item] = float(offset)
        except (TypeError, ValueError):
            raise wrong(row, f"offset {offset!r}, expected a number such as 1.5") from None
    return offsets


COMMAND = Command("recommend items for a history, a request in plain words, or both", main)
