"""`llmrec export-features`: write the semantic IDs of items and users as features for any ranker."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrec.cli.command import Command, PlainParser
from llmrec.console import log_to_stderr, plain, say
from llmrec.errors import UserError

SUMMARY = "write semantic IDs of items and users as features for any ranker"


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, write or measure the features, print what there is."""
    options = _parser().parse_args(arguments)
    if options.out is None and not options.measure:
        raise UserError("nothing to do: give --out DIR to write the features, --measure to compare them, or both.")
    for name in ("rows", "last"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: expected at least 1.")
    log_to_stderr()
    result = export(Path(options.run), options)
    if options.json:
        print(json.dumps(result))
        return
    if options.out is not None:
        say(f"{result['items']:,} items and {result['users']:,} users in {options.out}")
    if options.measure:
        say(*plain(_table(result["features"])).split("\n"))


def export(run: Path, options: Any) -> dict[str, Any]:
    """Write the features of a run's items and users, measure them, or both.

    Returns:
        `items` and `users`, their numbers; with `--measure` also `features`, see `ctr_metrics`.
    """
    from llmrec.data.prepare import load
    from llmrec.embed import Embeddings
    from llmrec.quantize.features import CodeFeatures, item_codes, save_features, user_codes
    from llmrec.quantize.tokenizer import ItemTokenizer

    if not (run / "tokenize").is_dir():
        raise UserError(f"--run {run}: no tokenized items there; start with `llmrec tokenize --run {run}`.")
    prepared, tokenizer = load(run / "data"), ItemTokenizer.load(run / "tokenize")
    ids = prepared.catalog.ids
    vectors = Embeddings.load(run / "embed", ids).vectors
    codes, vectors = item_codes(tokenizer, ids, vectors), tokenizer.inputs(ids, vectors)
    features = CodeFeatures(tuple(tokenizer.quantizer.level_sizes), options.rows)
    log = prepared.split.train.sequences(prepared.catalog)
    result: dict[str, Any] = {"items": len(ids), "users": len(log)}
    if options.out is not None:
        of_users = user_codes(log.train_sequences(), vectors, tokenizer.quantizer, options.last)
        save_features(Path(options.out), features, (ids, codes), (log.users, of_users))
    if options.measure:
        from llmrec.evaluation.ctr import ctr_metrics

        sequences = prepared.split.sequences(prepared.catalog)
        result["features"] = ctr_metrics(
            sequences, vectors, tokenizer.quantizer, codes, features, options.last, options.seed
        )
    return result


def _table(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    slices = [name for name in ("warm", "cold") if name in next(iter(figures.values()))]
    head = ["features", "rows", *(f"{name} {figure}" for name in slices for figure in ("AUC", "log-loss", "events"))]
    rows = [
        [name, f"{found['rows']:,}"]
        + [
            cell
            for kind in slices
            for cell in (f"{found[kind]['auc']:.4f}", f"{found[kind]['log_loss']:.4f}", f"{found[kind]['events']:,}")
        ]
        for name, found in figures.items()
    ]
    return [head, *rows]


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="llmrec export-features",
        description="Write the semantic IDs of a run's items and users as categorical features for any ranker: "
        "items.parquet, users.parquet and features.json. `unigram` is one feature per level, `prefix` one per prefix. "
        "A user has the codes of the mean vector of the last training items.",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="a run directory with the stage tokenize")
    parser.add_argument("--out", metavar="DIR2", help="the folder to write; it must be new or empty")
    parser.add_argument(
        "--rows",
        type=int,
        default=65_536,
        metavar="N",
        help="rows of the embedding table for prefixes of one length; longer prefixes, of which there are more, are "
        "hashed into so many rows (default 65536)",
    )
    parser.add_argument(
        "--last", type=int, default=20, metavar="N", help="items of a user's history that count (default 20)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train small click-through models on these features and on item ids, and print AUC and log-loss of the "
        "run's test events against drawn items that the user did not take",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --measure (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


COMMAND = Command(SUMMARY, main)
