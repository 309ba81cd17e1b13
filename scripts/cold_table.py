"""Several runs of one configuration, such as seeds, as one table: all, warm and cold targets, pooled over the runs.

    python scripts/cold_table.py RUN [RUN ...]

Prints Markdown; where all runs have drawn their frontier, also which recall of cold targets goes with which recall of
warm ones, in a straight line between the frontiers' points, with and without the language model. A user of
two runs counts twice, since the runs ask for different items; brackets are bootstrap 95% intervals over users,
milliseconds per user the median of the runs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.console import markdown
from llmrec.data.sequences import TRAIN
from llmrec.errors import UserError
from llmrec.evaluation.metrics import summarise

SLICES = ("all", "warm", "cold")
METRICS = ("recall@10", "ndcg@10")
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the best recall of warm targets: the columns of the frontiers."""


def main() -> None:
    """Read the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories that have been evaluated")
    runs = parser.parse_args().runs
    ranks = pl.concat([_ranks(run).with_columns(run=pl.lit(number)) for number, run in enumerate(runs)])
    ranks = ranks.with_columns(user=pl.struct("run", "user_id").rank("dense"))
    found = [json.loads((run / "evaluate" / "metrics.json").read_text()) for run in runs]
    protocols = {(one["protocol"]["split"], one["protocol"]["regime"], one["protocol"]["items"]) for one in found}
    if len(protocols) > 1:
        told = " and ".join(f"{split}, {regime}, {items:,} items" for split, regime, items in sorted(protocols))
        raise UserError(f"{told}: runs of one protocol and catalogue make a table.")
    [(split, regime, items)] = protocols
    taken = [one["milliseconds_per_user"] for one in found]
    first = ranks.filter(pl.col("system") == ranks["system"][0])
    counts = (
        f"{name} {part['user'].n_unique():,} users, {len(part):,} targets" for name, part in _slices(first).items()
    )
    print(f"{split}, {regime}, full ranking over {items:,} items, {len(runs)} runs: {'; '.join(counts)}\n")
    header = ["system", *(f"{metric}, {name}" for name in SLICES for metric in METRICS), "ms/user"]
    rows = [
        [system, *_cells(mine), f"{np.median([one[system] for one in taken]):.2f}"]
        for (system,), mine in ranks.group_by("system", maintain_order=True)
        if all(system in one for one in taken)
    ]
    print(markdown([header, *rows]))
    frontiers = [run / "evaluate" / "frontier.json" for run in runs]
    if all(path.is_file() for path in frontiers):
        print(f"\n{markdown(_frontiers([json.loads(path.read_text()) for path in frontiers]))}")
    missing = sorted(set().union(*taken) - {row[0] for row in rows})
    if missing:
        print(f"cold_table: left out, as not all runs have them: {', '.join(missing)}", file=sys.stderr)


def _frontiers(curves: list[dict[str, Any]]) -> list[list[str]]:
    """A row per curve that all runs have: the mean recall of cold targets over the runs, weighed by their numbers."""
    drawn = {"fusion": curves}
    if all("experts" in curve for curve in curves):
        drawn["experts"] = [curve["experts"] for curve in curves]
    best = {name: min(max(p["warm"] for p in curve["points"]) for curve in own) for name, own in drawn.items()}
    levels = [share * max(best.values()) for share in SHARES]
    rows = [["recall@10, warm", *(f"{level:.4f}" for level in levels)]]
    for name, own in drawn.items():
        cold = [
            np.interp(levels, *([point[kind] for point in reversed(curve["points"])] for kind in ("warm", "cold")))
            for curve in own
        ]
        mean = np.average(cold, axis=0, weights=[curve["targets"]["cold"] for curve in own])
        within = [level <= best[name] + 1e-9 for level in levels]
        rows.append([f"{name}, cold", *(f"{v:.4f}" if there else "" for v, there in zip(mean, within, strict=True))])
    return rows


def _ranks(run: Path) -> pl.DataFrame:
    """per_user.parquet with whether the target is cold: without an event in the run's training part."""
    path = run / "evaluate" / "per_user.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file; evaluate the run first.")
    events = pl.read_parquet(run / "data" / "interactions.parquet").filter(pl.col("part") == TRAIN)
    known = events["item_id"].unique().implode()
    return pl.read_parquet(path).with_columns(cold=~pl.col("item_id").is_in(known))


def _slices(ranks: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {"all": ranks, "warm": ranks.filter(~pl.col("cold")), "cold": ranks.filter(pl.col("cold"))}


def _cells(ranks: pl.DataFrame) -> list[str]:
    """Each slice's metrics with their intervals, of one system."""
    cells = []
    for part in _slices(ranks).values():
        found = summarise(
            part["rank"].cast(pl.Float64).fill_null(np.inf).to_numpy(),
            [10],
            bootstrap=1000,
            seed=0,
            users=part["user"].to_numpy(),
        )
        for metric in METRICS:
            low, high = found[f"{metric}_ci"]
            cells.append(f"{found[metric]:.4f} [{low:.4f}, {high:.4f}]")
    return cells


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"cold_table: {error}", file=sys.stderr)
        sys.exit(2)
