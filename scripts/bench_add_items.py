"""Seconds that `llmrec add-items` takes for many items, all told: start of the program, embedding, files on the disk.

    python scripts/bench_add_items.py --model RUN/model [--n 1000 | --items FILE] [--threads 2] [--json]
    python scripts/bench_add_items.py --made-up 10000000 [--json]

Works in a copy of the bundle, with an empty embedding cache. Without `--items` the new items are old ones, each with a
third of its title's words from another's. The codes of the old items must be as they were. `--made-up` measures only
how long one new item takes to get a semantic ID, in a catalogue of N made-up ones: 3 x 256 codes and a dedup level.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import polars as pl

from llmrec.quantize import TokenizeConfig, quantizer_class
from llmrec.quantize.arrivals import place
from llmrec.recommender import bundle

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


def bench_placement(items: int, rounds: int = 9) -> dict[str, Any]:
    """Place one item among `items` distinct semantic IDs; medians of the seconds over the rounds."""
    config = TokenizeConfig(levels=3, codes=256, iterations=2)
    rng = np.random.default_rng(0)
    quantizer = quantizer_class("rq-kmeans")(config).fit(rng.standard_normal((1000, 16), np.float32))
    sizes = [256, 256, 256, 8]
    numbers = np.arange(items) * (np.prod(sizes) // items)
    taken = np.column_stack(np.unravel_index(numbers, sizes)).astype(np.int32)
    seconds, cpu_seconds = [], []
    for _ in range(rounds):
        x = rng.standard_normal((1, 16), np.float32)
        codes = quantizer.encode(x)
        started, used = perf_counter(), process_time()
        place("dedup", taken, sizes, codes, quantizer, x)
        seconds.append(perf_counter() - started)
        cpu_seconds.append(process_time() - used)
    return {"items": items, "seconds": round(median(seconds), 4), "cpu_seconds": round(median(cpu_seconds), 4)}


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
        figures = bench_placement(options.made_up)
    else:
        figures = bench(options.model, options.items, options.n, options.threads)
    print(json.dumps(figures) if options.json else "\n".join(f"{name:<20} {value}" for name, value in figures.items()))
    if not figures.get("old_codes_unchanged", True):
        sys.exit("the codes of old items have changed")


if __name__ == "__main__":
    main()
