"""Pictures of a training and of an evaluation, as SVG images for a page that loads nothing else.

Their text and axes are dark on a light page and light on a dark one.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrec.evaluation.protocol import OURS, Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#123456"
"""Stands for the colour of the text while matplotlib draws; the SVG then has `currentColor` in its place."""
FIRST, SECOND = "#159a8a", "#d9822b"
STYLE = "<style>svg{color:#1d2129}@media(prefers-color-scheme:dark){svg{color:#e4e6eb}}</style>"
WIDTH = 4.8
"""Inches: a picture fits the width of a phone without being made smaller."""


def as_uri(kind: str, content: bytes) -> str:
    """The content of an image as a `data:` address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def loss_curve(log: Sequence[Mapping[str, Any]], key: str, name: str) -> str | None:
    """Draw one loss over the steps of a training.

    Args:
        log: the lines of `log.jsonl`.
        key: the loss: `loss` (training) or `eval_loss` (validation).
        name: of the loss, for the axis.

    Returns:
        The address of the picture; None if the log has fewer than two values.
    """
    steps = [line["step"] for line in log if key in line]
    losses = [line[key] for line in log if key in line]
    if len(steps) < 2:
        return None
    with _drawing(2.4) as figure:
        axes = _plain(figure)
        axes.plot(steps, losses, color=FIRST, linewidth=1.6, marker="o" if len(steps) < 30 else "", markersize=3)
        axes.set(xlabel="step", ylabel=name)
        return _svg(figure)


def slice_bars(metrics: Metrics, names: Sequence[str], other: str | None) -> str:
    """Draw llmrec's recall@10 with its interval in each slice, and that of another system.

    Args:
        metrics: of an evaluation.
        names: of the slices, from top to bottom.
        other: name of the other system; None draws llmrec alone.

    Returns:
        The address of the picture.
    """
    ours = [metrics["systems"][OURS][name] for name in names]
    values, places = [entry["recall@10"] for entry in ours], list(range(len(names)))
    # If the sample is skewed, a percentile interval may not contain the mean; an error bar can't be negative.
    lows = [max(0.0, value - entry["recall@10_ci"][0]) for value, entry in zip(values, ours, strict=True)]
    highs = [max(0.0, entry["recall@10_ci"][1] - value) for value, entry in zip(values, ours, strict=True)]
    with _drawing(0.9 + 0.26 * len(names)) as figure:
        axes = _plain(figure)
        axes.barh(places, values, 0.6, xerr=(lows, highs), color=FIRST, ecolor=INK, capsize=2, label=OURS)
        if other is not None:
            theirs = [metrics["systems"][other][name]["recall@10"] for name in names]
            axes.plot(theirs, places, "D", color=SECOND, markersize=5, label=other)
        axes.set(yticks=places, yticklabels=names, xlabel="recall@10", ylim=(len(names) - 0.4, -0.6), xlim=(0, None))
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        return _svg(figure)


@contextmanager
def _drawing(height: float) -> "Iterator[Figure]":
    """A figure of this height in inches, drawn in INK on nothing."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = {"svg.fonttype": "none", "svg.hashsalt": "llmrec", "font.size": 9, **dict.fromkeys(names, INK)}
    with rc_context(style):
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def _plain(figure: "Figure") -> "Axes":
    """The only axes of a figure, without a frame and a ground."""
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(figure: "Figure") -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    head, tag, body = out.getvalue().replace(INK, "currentColor").partition("<defs>")
    return as_uri("svg+xml", (head + STYLE + tag + body).encode())
