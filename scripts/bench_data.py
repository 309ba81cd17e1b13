"""Time and peak memory of filtering and splitting a large log, ours against the plain pandas way.

    python scripts/bench_data.py [--interactions 10000000] [--json]

Both read the same parquet file, keep one of exact duplicates, filter to a 5-core, and split leave-one-out,
each in a process of its own. The order of a user's equal times differs by design, so the log has none.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

CORE = 5
START = 1_700_000_000_000_000  # November 2023, in microseconds


def generate(path: Path, interactions: int, seed: int) -> None:
    """Write a log with power-law items, users of mean length 10, and distinct times in shuffled order."""
    rng = np.random.default_rng(seed)
    n_items, n_users = interactions // 25 + 1, interactions // 6 + 1
    items = (n_items * rng.power(0.35, size=interactions)).astype(np.int64)
    users = (n_users * rng.power(0.6, size=interactions)).astype(np.int64)
    ids = {"user_id": pl.format("U{}", pl.Series(users)), "item_id": pl.format("B{}", pl.Series(items))}
    times = pl.Series("timestamp", rng.permutation(interactions) + START)
    times.to_frame().with_columns(**ids).write_parquet(path)


def run_llmrec(log: Path) -> pl.DataFrame:
    """The way `llmrec prepare` does it."""
    from llmrec.data import Interactions, filters

    events = filters.exact_duplicates(Interactions.from_file(log))
    return filters.k_core(events, CORE, CORE).leave_one_out().frame


def run_pandas(log: Path) -> Any:
    """The way most published preprocessing scripts do it."""
    import pandas as pd

    frame = pd.read_parquet(log).sort_values(["user_id", "timestamp"], kind="stable").drop_duplicates()
    while True:
        before = len(frame)
        frame = frame[frame.groupby("user_id")["item_id"].transform("count") >= CORE]
        frame = frame[frame.groupby("item_id")["user_id"].transform("count") >= CORE]
        if len(frame) == before:
            break
    from_end = frame.groupby("user_id").cumcount(ascending=False)
    return frame.assign(part=(2 - from_end).clip(lower=0))


def worker(way: str, log: Path, result: Path) -> None:
    """One way, timed in this process; the split log goes to `result`, the figures to stdout."""
    start = time.perf_counter()
    frame = run_llmrec(log) if way == "llmrec" else run_pandas(log)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    if isinstance(frame, pl.DataFrame):
        frame.write_parquet(result)
    else:
        frame.to_parquet(result, index=False)
    print(json.dumps({"seconds": round(seconds, 2), "peak_gib": round(peak, 2), "events": len(frame)}))


def same(first: Path, second: Path) -> bool:
    """Whether both results hold the same events in the same parts."""
    keys = ["user_id", "timestamp"]
    columns = [*keys, "item_id", pl.col("part").cast(pl.Int64)]
    frames = [pl.read_parquet(path).select(columns).sort(keys) for path in (first, second)]
    return frames[0].equals(frames[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000, help="events to generate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated log")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, log, result = arguments.worker
        worker(way, Path(log), Path(result))
        return
    report = compare(arguments.interactions, arguments.seed)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{report['settings']}; same result: {report['same_result']}")
    for way in ("llmrec", "pandas"):
        print(f"{way:8} {report['seconds'][way]:8.1f} s {report['peak_gib'][way]:8.2f} GiB")


def compare(interactions: int, seed: int) -> dict[str, Any]:
    """Generate, run both ways one after the other, and compare."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        generate(log, interactions, seed)
        results = {way: Path(folder) / f"{way}.parquet" for way in ("llmrec", "pandas")}
        for way, result in results.items():
            command = [sys.executable, __file__, "--worker", way, str(log), str(result)]
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[way] = json.loads(process.stdout)
        equal = same(results["llmrec"], results["pandas"])
    return {
        "settings": {
            "interactions": interactions,
            "seed": seed,
            "user_core": CORE,
            "item_core": CORE,
            "split": "leave-one-out",
            "events_kept": figures["llmrec"]["events"],
        },
        "seconds": {way: figure["seconds"] for way, figure in figures.items()},
        "peak_gib": {way: figure["peak_gib"] for way, figure in figures.items()},
        "same_result": equal,
    }


if __name__ == "__main__":
    main()
