"""`llmrec add-items`: add items to a bundle, change their text or remove them, without training."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrec.cli.command import Command, PlainParser
from llmrec.console import log_to_stderr, say
from llmrec.errors import UserError

if TYPE_CHECKING:
    from llmrec.data import Catalog


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, change the bundle's items, print how many were added, updated and removed."""
    options = _parser().parse_args(arguments)
    if options.items is None and not options.remove:
        raise UserError("nothing to do: give --items FILE, --remove ID ..., or both.")
    log_to_stderr()
    started = time.perf_counter()
    columns = (options.item_column, options.title_column, options.image_column)
    catalog = None if options.items is None else _read(options.items, *columns)
    from llmrec.model.tokens import token_names
    from llmrec.recommender import bundle
    from llmrec.recommender.store import ItemStore, change_items

    def change(store: ItemStore) -> ItemStore:
        if options.remove:
            store = store.without_items(options.remove)
        if catalog is None:
            return store
        vectors = store.item_tokenizer.embed(catalog, options.vectors) if options.vectors else None
        return store.with_items(catalog, vectors, options.if_exists)

    old, new = change_items(options.model, options.out, change, options.encoder, image_encoder=options.image_encoder)
    removed = len(set(options.remove or ()))
    added = len(new.catalog) - len(old.catalog) + removed
    counts = {"added": added, "updated": (len(catalog) if catalog else 0) - added, "removed": removed}
    items, seconds = len(new.catalog), round(time.perf_counter() - started, 2)
    if options.json:
        header = bundle.read_header(bundle.locate(options.out or options.model))
        ids = new.semantic_ids(range(items - added, items), token_names(header.level_sizes, header.token_prefix))
        print(json.dumps({**counts, "items": items, "seconds": seconds, "semantic_ids": ids}))
        return
    say(", ".join(f"{count:,} {what}" for what, count in counts.items() if count))
    say(f"{items:,} items in {options.out or options.model}, {seconds} s")


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="llmrec add-items",
        description="Add items to a bundle, change or remove items, without training. The encoder and the quantizer of "
        "the bundle compute the semantic ID of an added item from its text; other items keep theirs. If the command is "
        "interrupted, the bundle is either the complete old one or the complete new one.",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="a bundle, such as RUN/model")
    parser.add_argument(
        "--items",
        metavar="FILE",
        help="CSV, TSV, JSONL or parquet, one item per row: an id, a title, and any fields of the bundle's catalogue",
    )
    parser.add_argument(
        "--encoder",
        metavar="DIR_OR_HUB_ID",
        help="the sentence-transformers model that embedded the bundle's items; for safety, a model name stored in the "
        "bundle is not loaded",
    )
    parser.add_argument(
        "--image-encoder",
        metavar="DIR_OR_HUB_ID",
        help="the model that embedded the images of the bundle's items; for safety, as with --encoder",
    )
    parser.add_argument(
        "--vectors",
        nargs="+",
        metavar="FILE",
        help="the vectors of the items, if those of the catalogue came from --embed.vectors: one file for each of "
        "those, in the same order",
    )
    parser.add_argument("--item-column", default="item_id", metavar="NAME", help="column of the ids (default item_id)")
    parser.add_argument("--title-column", default="title", metavar="NAME", help="column of the titles (default title)")
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help="column of the images, if the bundle's items were embedded with theirs: paths or data URIs",
    )
    parser.add_argument(
        "--if-exists",
        choices=("refuse", "update"),
        default="refuse",
        help="if an item of --items is already in the bundle: stop with an error and change nothing (refuse, the "
        "default), or replace its text and keep its semantic ID, which the model was trained on (update)",
    )
    parser.add_argument(
        "--remove", nargs="+", action="extend", metavar="ID", help="items to remove, before those of --items are added"
    )
    parser.add_argument(
        "--out",
        metavar="DIR2",
        help="write a new bundle to this folder, instead of in place; needed if --model is a Hub id",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    return parser


def _read(path: str, item_column: str, title_column: str, image_column: str | None) -> "Catalog":
    """Read the items of a file."""
    from llmrec.data import Catalog
    from llmrec.data.files import read_table, require_column

    frame = read_table(path, "--items")
    require_column(frame, item_column, path, "--item-column")
    require_column(frame, title_column, path, "--title-column")
    if image_column is not None:
        require_column(frame, image_column, path, "--image-column")
    return Catalog.from_table(frame, path, item_column, title_column, image_column)


COMMAND = Command("add, change or remove items of a bundle, without training", main)
