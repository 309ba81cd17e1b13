"""The tables and the picture of a benchmark, from its JSON alone."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, BinaryIO

from llmrec.collaborative.fused import FusedExperts
from llmrec.console import markdown
from llmrec.evaluation.metrics import INTERVAL_METRICS
from llmrec.evaluation.protocol import OURS
from llmrec.evaluation.report import protocol_line

Benchmark = dict[str, Any]
"""The content of benchmark.json: `seeds`; `protocol`; `systems`, name -> `family`, `runs` (one entry per seed), `mean`
and `std` of their figures; and `paired`, as in metrics.json, of the figures averaged over the seeds."""


def rows(found: Benchmark, slice_name: str = "all") -> list[list[str]]:
    """The table: a header and a row per system that has the slice.

    Brackets are 95% intervals over users (of the first seed), ± is the standard deviation over seeds.
    """
    table = [["system", "family", "recall@10", "ndcg@10", "users", "recall@10, seen kept", "seeds"]]
    for name, entry in found["systems"].items():
        first = entry["runs"][0]["seen_left_out"].get(slice_name)
        if first is None:
            continue
        kept = f"{mean(run['seen_kept']['all']['recall@10'] for run in entry['runs']):.4f}"
        cells = [_cell([run["seen_left_out"][slice_name] for run in entry["runs"]], key) for key in INTERVAL_METRICS]
        table.append(
            [
                name,
                entry["family"],
                *cells,
                f"{first['users']:,}",
                kept if slice_name == "all" else "",
                str(len(entry["runs"])),
            ]
        )
    return table


def _cell(figures: Sequence[Mapping[str, Any]], key: str) -> str:
    low, high = figures[0][f"{key}_ci"]
    spread = f" ±{stdev(one[key] for one in figures):.4f}" if len(figures) > 1 else ""
    return f"{mean(one[key] for one in figures):.4f}{spread} [{low:.4f}, {high:.4f}]"


def cost_rows(found: Benchmark) -> list[list[str]]:
    """What lists are like and what a system costs: a header and a row per system, of the first seed."""
    lists = ("coverage@10", "popularity@10", "novelty@10", "gini@10")
    table = [["system", *lists, "fit s", "ms/user", "GiB"]]
    for name, entry in found["systems"].items():
        run = entry["runs"][0]
        told = [f"{run['lists'][key]:.4f}" if run["lists"] else "" for key in lists]
        cost = [f"{run['fit_seconds']:,.1f}", f"{run['milliseconds_per_user']:.2f}", f"{run['peak_memory_gib']:.2f}"]
        table.append([name, *told, *cost])
    return table


def worth_rows(found: Benchmark) -> list[list[str]]:
    """What each expert is worth: a header and a row per expert; empty without experts."""
    if FusedExperts.name not in found["systems"]:
        return []
    worth = found["systems"][FusedExperts.name]["runs"][0]["worth"]
    table = [["without", *INTERVAL_METRICS]]
    for name in worth[INTERVAL_METRICS[0]]:
        table.append([name, *(_difference(worth[metric][name]) for metric in INTERVAL_METRICS)])
    return table


def _difference(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def paired_rows(found: Benchmark) -> list[list[str]]:
    """The paired differences: a header and a row per metric and pair; the best baseline is that of the metric."""
    table = [["difference", "metric", "mean [95% interval]", "p (Holm)"]]
    for metric, entry in found["paired"].items():
        pairs = {f"{name} - {entry['best']}": one for name, one in entry.get("systems", {}).items()}
        if "experts" in entry:
            pairs[f"{OURS} - {FusedExperts.name}"] = entry["experts"]
        table += [[n, metric, _difference(one), f"{one.get('p_holm', one['p']):.3g}"] for n, one in pairs.items()]
    return table


FRONTIER = 9
"""Points of the frontier in the table."""


def frontier_rows(found: Benchmark) -> list[list[str]]:
    """What warm and cold targets get for other bonuses of cold items: a header and two rows; empty if unknown."""
    curve = found["systems"].get(FusedExperts.name, {"runs": [{}]})["runs"][0].get("frontier")
    if curve is None:
        return []
    last = len(curve["points"]) - 1
    points = [curve["points"][last * at // (FRONTIER - 1)] for at in range(FRONTIER)]
    points = sorted([*points, curve["calibrated"]], key=lambda point: point["bonus"])
    marks = ["calibrated" if point is curve["calibrated"] else f"{point['bonus']:.2f}" for point in points]
    figures = [[f"recall@10, {kind}", *(f"{point[kind]:.4f}" for point in points)] for kind in ("warm", "cold")]
    return [["bonus", *marks], *figures]


def document(found: Benchmark) -> str:
    """The tables in Markdown."""
    parts = [
        "# Benchmark",
        f"{protocol_line(found)}. Brackets are bootstrap 95% intervals over users, ± is the standard deviation over "
        "seeds.",
        markdown(rows(found)),
    ]
    slices = next(iter(found["systems"].values()))["runs"][0]["seen_left_out"]
    for name in ("warm", "cold"):
        if "cold" in slices and name in slices:
            parts += [f"## {name.capitalize()} targets", markdown(rows(found, name))]
    parts += ["## Lists and cost", "Of the first seed; popularity is the share of the training events."]
    parts.append(markdown(cost_rows(found)))
    if len(table := paired_rows(found)) > 1:
        said = "Bootstrap over users of the per-user difference; the best baseline is the best on these cases."
        parts += ["## Paired differences", said, markdown(table)]
    if table := worth_rows(found):
        said = "What the weighted sum of all experts gains over the sum without one; no learned order in either."
        parts += ["## What each expert is worth", said, markdown(table)]
    if table := frontier_rows(found):
        said = "By the weighted sum of the experts, for other bonuses of cold items; no learned order."
        parts += ["## Warm against cold targets", said, markdown(table)]
    parts.append("![recall@10 and ndcg@10 with intervals](benchmark.png)")
    return "\n\n".join(parts) + "\n"


def plot(found: Benchmark, file: BinaryIO) -> None:
    """Draw one panel per metric and one bar per system; the error bar is the interval over users."""
    from matplotlib.figure import Figure

    systems: dict[str, dict[str, Any]] = found["systems"]
    colours: dict[str, str] = {}
    for entry in systems.values():
        colours.setdefault(entry["family"], f"C{len(colours)}")
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(systems)), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2, sharey=True), INTERVAL_METRICS, strict=True):
        for name, entry in systems.items():
            average, (low, high) = entry["mean"][key], entry["runs"][0]["seen_left_out"]["all"][f"{key}_ci"]
            bounds = [[max(0.0, average - low)], [max(0.0, high - average)]]
            axes.barh(name, average, xerr=bounds, color=colours[entry["family"]], capsize=2)
        axes.set_title(key, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(file, format="png", dpi=120)
