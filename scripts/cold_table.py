"""Several runs of one configuration, such as seeds, as one table: all, warm and cold targets, pooled over the runs.

    python scripts/cold_table.py RUN [RUN ...]

Prints Markdown; where all runs have drawn their frontier, also what warm and cold targets get together as the bonus of
new items moves by so much from each run's calibrated one, in a straight line between the frontiers' points. A user of
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
SHIFTS = (-1.0, -0.6, -0.4, -0.2, -0.1, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


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
        print(f"\n{markdown(_frontier([json.loads(path.read_text()) for path in frontiers], first))}")
    missing = sorted(set().union(*taken) - {row[0] for row in rows})
    if missing:
        print(f"cold_table: left out, as not all runs have them: {', '.join(missing)}", file=sys.stderr)


def _frontier(curves: list[dict[str, Any]], ranks: pl.DataFrame) -> list[list[str]]:
    """The curves of the runs as one, weighed by their targets, which stand in one system's `ranks`: a row per kind."""
    rows = [["bonus moved by", *(f"{shift:+g}" for shift in SHIFTS)]]
    for kind in ("warm", "cold"):
        targets = _slices(ranks)[kind].group_by("run").len().sort("run")["len"].to_numpy()
        found = [
            np.interp(
                np.add(SHIFTS, curve["calibrated"]["bonus"]),
                [point["bonus"] for point in curve["points"]],
                [point[kind] for point in curve["points"]],
            )
            for curve in curves
        ]
        rows.append([f"recall@10, {kind}", *(f"{value:.4f}" for value in np.average(found, axis=0, weights=targets))])
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
