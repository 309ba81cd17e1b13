"""Seconds that `llmrec add-items` takes for many items, all told: start of the program, embedding, files on the disk.

    python scripts/bench_add_items.py --model RUN/model [--n 1000 | --items FILE] [--threads 2] [--json]
    python scripts/bench_add_items.py --made-up 10000000 [--json]

Works in a copy of the bundle, with an empty embedding cache. Without `--items` the new items are old ones, each with a
third of its title's words from another's. The codes of the old items must be as they were.

`--made-up` measures what one new item costs without files, in a catalogue of N made-up ones with 3 x 256 codes and a
dedup level: `place` finds its semantic ID, `tokenizer` is the tokenizer with the item, `store` is all data about items,
the trie included.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import polars as pl

from llmrec.data import Catalog
from llmrec.quantize import ItemTokenizer
from llmrec.quantize.arrivals import place
from llmrec.recommender import bundle
from llmrec.recommender.store import ItemStore

SHARE = 3
"""One of so many words of a title comes from another's."""


def perturbed(catalog: pl.DataFrame, n: int) -> pl.DataFrame:
    """n items like those of `catalog`, with ids of their own."""
    rng = np.random.default_rng(0)
    rows = rng.integers(catalog.height, size=n)
    words = [title.split() or ["item"] for title in catalog["title"]]
    titles = []
    for row, other in zip(rows, rng.integers(catalog.height, size=n), strict=True):
        strange = rng.random(len(words[row])) < 1 / SHARE
        mixed = [str(rng.choice(words[other])) if swap else w for w, swap in zip(words[row], strange, strict=True)]
        titles.append(" ".join(mixed))
    ids = [f"new-{number}" for number in range(n)]
    return catalog[rows].with_columns(pl.Series("item_id", ids), pl.Series("title", titles))


def bench(model: Path, items: Path | None, n: int, threads: int) -> dict[str, Any]:
    """Add to a copy of `model`; the seconds, and what the program said."""
    index = bundle.read_index(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(model, folder / "model")
        if items is None:
            items = folder / "new.parquet"
            perturbed(index.drop("codes"), n).write_parquet(items)
        command = [sys.executable, "-m", "llmrec", "add-items", "--model", folder / "model", "--items", items, "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LLMREC_CACHE": str(folder / "cache")}
        started = perf_counter()
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        seconds = perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if result.returncode:
            sys.exit(result.returncode)
        said = json.loads(result.stdout)
        after = bundle.read_index(folder / "model")
        return {
            "items_before": index.height,
            "added": said["added"],
            "threads": threads,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
            "old_codes_unchanged": after.head(index.height)["codes"].equals(index["codes"]),
            "all_codes_distinct": after["codes"].n_unique() == after.height,
        }


def made_up(items: int) -> ItemStore:
    """A store of `items` with distinct semantic IDs, in no order."""
    rng = np.random.default_rng(0)
    tokenizer = ItemTokenizer(levels=3, codes=256, iterations=2)
    tokenizer.fit_embeddings([str(row) for row in range(1000)], rng.standard_normal((1000, 16), np.float32))
    tokenizer.level_sizes = [256, 256, 256, 8]
    numbers = rng.permutation(items) * (np.prod(tokenizer.level_sizes) // items)
    codes = np.column_stack(np.unravel_index(numbers, tokenizer.level_sizes))
    tokenizer.ids, tokenizer.codes = pl.Series("item_id", np.arange(items)).cast(pl.String), codes.astype(np.int32)
    titles = pl.Series("title", ["one title for all of them"]).new_from_index(0, items)
    return ItemStore.untrained(Catalog(pl.DataFrame([tokenizer.ids, titles])), tokenizer)


def bench_arrival(items: int, rounds: int = 9) -> dict[str, Any]:
    """Add one item after the other to a store of `items`; medians of the seconds."""
    store, rng = made_up(items), np.random.default_rng(1)
    taken: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        x, new, tokenizer = rng.standard_normal((1, 16), np.float32), f"new-{number}", store.item_tokenizer
        catalog = Catalog(pl.DataFrame({"item_id": [new], "title": ["a title"]}))
        own = ("dedup", tokenizer.codes, tokenizer.level_sizes, tokenizer.quantizer.encode(x), tokenizer.quantizer, x)
        ways: dict[str, Callable[[], Any]] = {
            "place": partial(place, *own),
            "tokenizer": partial(tokenizer.with_items, [new], x),
            "store": partial(store.with_items, catalog, x),
        }
        for name, way in ways.items():
            started, used = perf_counter(), process_time()
            result = way()
            taken.setdefault(name, []).append((perf_counter() - started, process_time() - used))
        store = result
    figures: dict[str, Any] = {"items": items}
    for name, rows in taken.items():
        for what, values in zip(("seconds", "cpu_seconds"), zip(*rows, strict=True), strict=True):
            figures[f"{name}_{what}"] = round(median(values), 4)
    return figures


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path)
    what.add_argument("--made-up", type=int, metavar="N")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.made_up:
        figures = bench_arrival(options.made_up)
    else:
        figures = bench(options.model, options.items, options.n, options.threads)
    print(json.dumps(figures) if options.json else "\n".join(f"{name:<24} {value}" for name, value in figures.items()))
    if not figures.get("old_codes_unchanged", True):
        sys.exit("the codes of old items have changed")


if __name__ == "__main__":
    main()
