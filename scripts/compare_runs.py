"""Paired differences of runs on the same test cases, or of a preference alignment's evaluations on validation cases.

    python scripts/compare_runs.py NAME=RUN[,RUN...] NAME=RUN[,RUN...] [...] [--system llmrec] [--k 1 5 10 50]
    python scripts/compare_runs.py --preference RUN[,RUN...] [--k 1 5 10 50]

The first name is what the others are compared with. Several runs of one name are seeds: the metric of a user is the
mean over them. Prints Markdown: recall and NDCG, and under each the difference from the first with its bootstrap 95%
interval over users. Each --k must be among the cut-offs of the runs' evaluation (--evaluate.k).

With --preference, the rows are the evaluations (`preference/per_user.parquet`), and the first is the model before it.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.console import markdown
from llmrec.errors import UserError
from llmrec.evaluation.metrics import per_user
from llmrec.evaluation.significance import paired_difference
from llmrec.preference.align import LISTED

RESAMPLES = 1000


def main() -> None:
    """Read the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN[,RUN...]", help="run directories that have been evaluated")
    parser.add_argument("--preference", metavar="RUN[,RUN...]", help="run directories with a preference alignment")
    parser.add_argument("--system", default="llmrec", help="name of the system in the reports (default: llmrec)")
    parser.add_argument("--k", nargs="+", type=int, default=[1, 5, 10, 50], help="cut-offs (default: 1 5 10 50)")
    arguments = parser.parse_args()
    if bool(arguments.runs) == bool(arguments.preference):
        raise UserError("Give NAME=RUN[,RUN...] or --preference RUN[,RUN...].")
    if arguments.preference:
        if (most := max(arguments.k)) > LISTED:
            raise UserError(f"--k {most}: an alignment's lists have {LISTED} items; leave it out.")
        folders = [Path(folder) for folder in arguments.preference.split(",")]
        groups = {name: [(folder, name) for folder in folders] for name in _evaluations(folders[0])}
        read = _aligned
    else:
        groups, read = {}, partial(_evaluated, cuts=arguments.k)
        for word in arguments.runs:
            name, _, runs = word.partition("=")
            if not runs or name in groups:
                raise UserError(f"{word}: expected NAME=RUN[,RUN...], each name once.")
            groups[name] = [(Path(folder), arguments.system) for folder in runs.split(",")]
    found: dict[str, dict[str, np.ndarray]] = {}
    cases: pl.DataFrame | None = None
    for name, members in groups.items():
        tables = [read(folder, system) for folder, system in members]
        for table, (folder, _) in zip(tables, members, strict=True):
            cases = table.select("user_id", "item_id") if cases is None else cases
            if not cases.equals(table.select("user_id", "item_id")):
                raise UserError(f"{folder}: other cases than the first run; compare runs of one split.")
        ranks = [table["rank"].cast(pl.Float64).fill_null(np.inf).to_numpy() for table in tables]
        every = [{k: v for cut in arguments.k for k, v in per_user(each, cut).items()} for each in ranks]
        found[name] = {metric: np.mean([each[metric] for each in every], axis=0) for metric in every[0]}
    assert cases is not None, "there is a run"
    metrics = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in arguments.k if (metric, k) != ("ndcg", 1)]
    users, first = cases["user_id"].rle_id().to_numpy(), next(iter(found))
    rows = [["", *metrics]]
    for name, values in found.items():
        rows.append([name, *(f"{values[metric].mean():.4f}" for metric in metrics)])
        if name != first:
            gains = [paired_difference(values[m], found[first][m], users, RESAMPLES, seed=0) for m in metrics]
            rows.append([f"{name} - {first}", *(f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]" for one in gains)])
    print(markdown(rows))


def _evaluated(run: Path, system: str, cuts: list[int]) -> pl.DataFrame:
    """The ranks of one system in the evaluation of a run, sorted by user and item."""
    path, metrics = run / "evaluate" / "per_user.parquet", run / "evaluate" / "metrics.json"
    if not path.is_file() or not metrics.is_file():
        raise UserError(f"{run}: no evaluation there; expected {path}.")
    table = pl.read_parquet(path)
    if "seen" in table.columns:  # of a benchmark
        table = table.filter(seen="left out")
    if system not in (names := table["system"].unique(maintain_order=True).to_list()):
        raise UserError(f"--system {system}: not in {path}; expected one of {', '.join(names)}.")
    measured = json.loads(metrics.read_text(encoding="utf-8"))["systems"][system]["all"]
    if missing := [k for k in cuts if f"recall@{k}" not in measured]:
        raise UserError(f"--k {missing[0]}: {run} was not evaluated at it; add it to --evaluate.k, or leave it out.")
    return table.filter(system=system).sort("user_id", "item_id")


def _evaluations(run: Path) -> list[str]:
    """The names of an alignment's evaluations, in their order."""
    if not (path := run / "preference" / "per_user.parquet").is_file():
        raise UserError(f"{run}: no preference alignment with validation cases there; expected {path}.")
    return pl.read_parquet(path)["system"].unique(maintain_order=True).to_list()


def _aligned(run: Path, name: str) -> pl.DataFrame:
    """The ranks in one evaluation of an alignment, sorted by user and item."""
    if name not in (there := _evaluations(run)):
        raise UserError(f"{run}: has {', '.join(there)}, and no {name}; compare alignments with the same evaluations.")
    return pl.read_parquet(run / "preference" / "per_user.parquet").filter(system=name).sort("user_id", "item_id")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"compare_runs: {error.with_flags}", file=sys.stderr)
        sys.exit(2)
