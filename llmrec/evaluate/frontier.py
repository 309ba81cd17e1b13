"""What warm and cold targets can both have: recall@10 of either as the fusion favours new items more or less."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.data.split import Cases
from llmrec.decode.calibrate import bonus_bars, gather
from llmrec.errors import UserError
from llmrec.evaluate.generative import HasRanker
from llmrec.evaluate.protocol import Metrics

POINTS = 41
"""Of the curve."""


def frontier(recommender: HasRanker, cases: Cases, train_counts: np.ndarray) -> dict[str, Any]:
    """The curve on n cases, with what stands in a history left out.

    Args:
        recommender: calibrated.
        cases: with warm and cold targets.
        train_counts: int [N], training events of each item.

    Returns:
        `points`, each `bonus`, `warm` and `cold` (recall@10), from no new item in any list to nothing but new ones;
        and `calibrated`, the point that the recommender ranks at.

    Raises:
        UserError: the recommender is not calibrated, or there is no warm or no cold target.
    """
    if recommender.weights is None:
        raise UserError("--evaluate.frontier true: the bundle's fusion has not been calibrated; set it to false.")
    cold = train_counts[cases.targets] == 0
    if cold.all() or not cold.any():
        raise UserError(
            f"--evaluate.frontier true: {int(cold.sum())} of {len(cold)} targets are cold, so there is nothing to "
            "trade; set it to false."
        )
    ranker = recommender.ranked_by("fusion")
    items, features, _ = gather(ranker, cases)
    bars = bonus_bars(recommender.weights, items, features, cases.targets, train_counts == 0)

    def point(bonus: float) -> dict[str, float]:
        return {"bonus": bonus, "warm": float((bars[~cold] > bonus).mean()), "cold": float((bars[cold] < bonus).mean())}

    turns = bars[np.isfinite(bars)]
    grid = np.quantile(turns, np.linspace(0, 1, POINTS)) if len(turns) else np.zeros(POINTS)
    grid[[0, -1]] = np.nextafter(grid[0], -np.inf), np.nextafter(grid[-1], np.inf)  # before any turns, after all have
    return {
        "targets": {"warm": int((~cold).sum()), "cold": int(cold.sum())},
        "calibrated": point(recommender.weights.bonus),
        "points": [point(float(bonus)) for bonus in grid],
    }


def write_frontier(curve: dict[str, Any], metrics: Metrics, directory: str | Path) -> None:
    """Write frontier.json and frontier.png, with the systems of `metrics` as points beside the curve."""
    from matplotlib.figure import Figure

    directory = Path(directory)
    (directory / "frontier.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")  # draws with Agg, no display
    axes = figure.subplots()
    axes.plot([p["warm"] for p in curve["points"]], [p["cold"] for p in curve["points"]], color="tab:orange")
    for name, entry in metrics["systems"].items():
        if "warm" in entry and "cold" in entry:
            at = entry["warm"]["recall@10"], entry["cold"]["recall@10"]
            axes.plot(*at, marker="o", color="tab:orange" if name == "llmrec" else "tab:gray")
            axes.annotate(name, at, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set(xlabel="recall@10, warm targets", ylabel="recall@10, cold targets")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "frontier.png", dpi=120)
