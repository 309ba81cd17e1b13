"""The picture of an alignment: what the guards saw at each evaluation, and what the lists were like."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmrec.atomic import write_file

PANELS = {
    "recall": ("recall@10", "recall@50"),
    "ndcg@10": ("ndcg@10",),
    "KL from the start, nats": ("kl",),
    "coverage: share of the items in any list": ("coverage@10",),
    "popularity: share of the events of a listed item": ("popularity@10",),
    "concentration: Gini index of the lists": ("gini@10",),
}
"""Title -> figures of the log."""


def save_picture(lines: Sequence[Mapping[str, float]], best: int, least: float, path: Path) -> None:
    """Draw the evaluations of an alignment as a PNG.

    Args:
        lines: of log.jsonl, one per evaluation.
        best: number of the step whose model is kept, a dashed line.
        least: smallest recall@50 of a model that may be kept, a dotted line.
        path: of the PNG, written atomically.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")  # draws with Agg, no display
    steps = [line["step"] for line in lines]
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for name in names:
            axes.plot(steps, [line[name] for line in lines], marker="o", label=name)
        axes.axvline(best, linestyle="--", color="tab:gray", label=f"kept: step {best}")
        if "recall@50" in names:
            axes.axhline(least, linestyle=":", color="tab:red", label="least recall@50")
            axes.legend(frameon=False, fontsize="small")
        axes.set(title=title, xlabel="step")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
    write_file(path, lambda part: figure.savefig(part, dpi=120, format="png"))
