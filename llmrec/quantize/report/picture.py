"""Pictures of the report on semantic IDs: all figures in one, and the map of the items alone."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.quantize.base import Rows, sample
from llmrec.quantize.report.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_ITEMS = 10_000
"""Most items on the map; of a larger catalogue, a seeded sample."""
LABELS = 12
"""Number of first-level codes, the largest ones, that the map labels with their best word."""
BLUE, ORANGE = "#3b6fb6", "#e08a3c"


def save_picture(report: Report, path: Path, x: Rows, first: np.ndarray) -> None:
    """Draw the report and write it as a PNG.

    Args:
        report: its figures.
        path: of the PNG.
        x: embeddings [N, D].
        first: the items' first codes, integers [N].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(report.headline)
    wide = figure.add_gridspec(2, 1, height_ratios=[2, 3])
    top = wide[0].subgridspec(1, 4 if report.get("training") else 3)
    _draw_use(figure.add_subplot(top[0]), report)
    _draw_distortion(figure.add_subplot(top[1]), report)
    _draw_collisions(figure.add_subplot(top[2]), report)
    if report.get("training"):
        _draw_training(figure.add_subplot(top[3]), report["training"])
    _draw_map(figure.add_subplot(wide[1]), report, x, first)
    figure.savefig(path, dpi=120)


def map_picture(report: Report, x: Rows, first: np.ndarray) -> bytes:
    """Draw only the map of the items, on a transparent ground; the arguments are those of `save_picture`.

    Returns:
        The content of a PNG.
    """
    from matplotlib.figure import Figure

    figure, out = Figure(figsize=(7, 4.5), layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    _draw_map(axes, report, x, first)
    axes.set_title("")
    axes.spines[:].set_visible(False)
    figure.savefig(out, dpi=120, transparent=True)
    return out.getvalue()


def _draw_use(axes: "Axes", report: Report) -> None:
    levels = np.arange(1, report["levels"] + 1)
    share = np.array(report["perplexity"]) / report["level_sizes"]
    axes.bar(levels - 0.2, report["usage"], 0.4, label="usage", color=BLUE)
    axes.bar(levels + 0.2, share, 0.4, label="perplexity / codes", color=ORANGE)
    axes.set(title="codebooks", xlabel="level", xticks=levels, ylim=(0, 1.3))
    axes.legend(loc="upper center", ncols=2, frameon=False, fontsize="small")


def _draw_distortion(axes: "Axes", report: Report) -> None:
    """Draw the distortion after each level, or one bar if the method cannot decode its first codes alone."""
    by_level, whole = report["distortion_by_level"], report["distortion"]
    values = by_level or [whole]
    levels = np.arange(1, len(values) + 1) if by_level else np.array([report["levels"]])
    heights = [np.nan if value is None else value for value in values]
    bars = axes.bar(levels, heights, 0.6 if by_level else 0.3, color=BLUE)
    axes.bar_label(bars, ["" if value is None else f"{value:.3f}" for value in values], fontsize="small")
    axes.set(title="distortion / variance", xlabel="levels used", xticks=levels, xlim=(0.3, report["levels"] + 0.7))
    axes.margins(y=0.15)


def _draw_collisions(axes: "Axes", report: Report) -> None:
    from matplotlib.ticker import MaxNLocator

    groups = report["collision_groups"]
    axes.bar([int(size) for size in groups], list(groups.values()), color=BLUE)
    axes.set(title=f"collision rate {report['collision_rate']:.2%}", xlabel="items with the same codes")
    axes.set(ylabel="groups", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_training(axes: "Axes", training: dict[str, Any]) -> None:
    """Draw the collision rate against the epochs, and mark the epoch whose weights were kept."""
    axes.plot(training["epochs"], training["collision_rate"], marker=".", color=BLUE)
    axes.axvline(training["kept"], color=ORANGE, linestyle="--", label=f"kept: {training['kept']}")
    axes.set(title="collision rate in training", xlabel="epoch", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")


def _draw_map(axes: "Axes", report: Report, x: Rows, first: np.ndarray) -> None:
    """Draw the items on the two leading principal components, coloured by first code; label the largest codes."""
    from matplotlib.patheffects import withStroke

    rows = sample(np.arange(len(x)), MAP_ITEMS, seed=0)
    place, kept = _project(np.asarray(x[rows], np.float32))
    used, group, sizes = np.unique(first[rows], return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(group, place[:, axis]) / sizes for axis in (0, 1)], axis=1)
    axes.scatter(place[:, 0], place[:, 1], s=6, c=_colours(means)[group], linewidths=0, alpha=0.7)
    where = dict(zip(used.tolist(), means, strict=True))
    for entry in (report["words"] or [])[:LABELS]:
        if entry["words"] and entry["code"] in where:
            name = axes.annotate(entry["words"][0], where[entry["code"]], ha="center", fontsize="small", weight="bold")
            name.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set(title=f"items, coloured by first code (2 principal components, {kept:.0%} of the variance)")
    axes.set(xticks=[], yticks=[])


def _colours(means: np.ndarray) -> np.ndarray:
    """Return an RGB colour per code, floats [C, 3] in 0 to 1, from its mean position on the map, floats [C, 2].

    Codes sorted by the angle of their mean get evenly spaced hues, and three shades in turn.
    """
    from matplotlib.colors import hsv_to_rgb

    turn = np.argsort(np.argsort(np.arctan2(means[:, 1], means[:, 0]), kind="stable"))
    shade = np.array([0.95, 0.7, 0.5])[turn % 3]
    return hsv_to_rgb(np.stack([turn / len(means), np.full(len(means), 0.75), shade], axis=1))


def _project(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Project `x`, float32 [N, D], onto its two leading principal components.

    Returns:
        Coordinates, float32 [N, 2], and the share of the variance that the two components keep.
    """
    centred = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    place = np.zeros((len(x), 2), np.float32)
    leading = vectors[:, ::-1][:, :2]  # has only one column if D = 1
    place[:, : leading.shape[1]] = centred @ leading
    return place, float(values[::-1][:2].sum() / max(values.sum(), 1e-30))
