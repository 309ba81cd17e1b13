"""`llmrec recommend`: the best items for a history, a request in plain words, or both."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace

from llmrec.cli.command import Command, PlainParser
from llmrec.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parse, load the bundle, answer."""
    parser = PlainParser(prog="llmrec recommend", description="Recommend items of a bundle's catalogue.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="a bundle, such as RUN/model")
    parser.add_argument("--history", nargs="+", metavar="ID", default=[], help="item ids, oldest first")
    parser.add_argument("--prompt", metavar="TEXT", help="what is asked for, in plain words")
    parser.add_argument("--k", type=int, default=10, help="answers (default 10)")
    parser.add_argument("--exclude", nargs="+", metavar="ID", default=[], help="items that must not come out")
    parser.add_argument("--include-seen", action="store_true", help="let items of the history come out too")
    parser.add_argument(
        "--where", nargs="+", metavar="FIELD=VALUE", default=[], help="only items whose field has this value"
    )
    parser.add_argument("--beams", type=int, default=20, help="beams of the search (default 20)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that a base model brings along")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    options = parser.parse_args(arguments)
    if not options.history and options.prompt is None:
        raise UserError('nothing to go by: give --history ID ..., --prompt "text", or both.')
    if options.beams < 1:
        raise UserError(f"--beams {options.beams}: expected at least 1.")
    where = dict(_pair(text) for text in options.where)
    from llmrec.decode.config import DecodeConfig
    from llmrec.serve.recommender import Recommender

    decode = replace(DecodeConfig(), beams=options.beams, device=options.device)
    recommender = Recommender.from_pretrained(options.model, decode, options.trust_remote_code)
    started = time.perf_counter()
    items = recommender.recommend(
        options.history, options.prompt, options.k, options.exclude, options.include_seen, where
    )
    seconds = time.perf_counter() - started
    if options.json:
        print(json.dumps({"items": [item.to_dict() for item in items], "seconds": round(seconds, 4)}))
        return
    for item in items:
        print(f"{item.rank:>3}  {item.item_id:<12}  {item.score:8.3f}  {item.title}")
    if not items:
        print("No item passes the filters.")


def _pair(text: str) -> tuple[str, str]:
    field, sign, value = text.partition("=")
    if not sign or not field:
        raise UserError(f"--where {text}: expected FIELD=VALUE, such as brand=Weleda.")
    return field, value


COMMAND = Command("the best items for a history, a request in plain words, or both", main)
