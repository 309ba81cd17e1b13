"""The diagnosis as one picture: what becomes of warm and of cold targets, level by level."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"warm": "tab:orange", "cold": "tab:blue"}
PANELS = {
    "log_probability": "log-probability of the true code",
    "prefix_seen": "codes so far seen in training",
    "recall@10": "recall@10, earlier codes given (dotted: chance)",
}


def save_picture(diagnosis: dict[str, Any], path: Path) -> None:
    """Draw a diagnosis (see `llmrec.evaluate.diagnosis`) as a PNG; dotted in the last panel: a random order."""
    from matplotlib.figure import Figure

    levels = np.arange(1, diagnosis["protocol"]["levels"] + 1)
    figure = Figure(figsize=(11, 3.4), layout="constrained")  # draws with Agg, no display
    panels: list[Axes] = list(figure.subplots(1, len(PANELS)))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for kind, group in diagnosis["targets"].items():
            low, high = np.array(group[f"{name}_ci"]).T
            label = f"{kind} ({group['targets']:,} targets)"
            axes.plot(levels, group[name], marker="o", color=COLOURS[kind], label=label)
            axes.fill_between(levels, low, high, color=COLOURS[kind], alpha=0.2, linewidth=0)
            if name == "recall@10":
                axes.plot(levels, group["chance"], linestyle=":", color=COLOURS[kind])
        axes.set(title=title, xlabel="level", xticks=levels)
        if name != "log_probability":
            axes.set_ylim(-0.03, 1.03)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)
