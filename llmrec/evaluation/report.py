"""The report of an evaluation (metrics.json, per_user.parquet, report.md, report.png) and the bundle's README.md."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from llmrec.console import markdown, plain
from llmrec.evaluation.metrics import INTERVAL_METRICS
from llmrec.evaluation.protocol import MAIN, OURS, Metrics
from llmrec.recommender.card import Evaluated, card_text
from llmrec.resources import is_repo_id

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PAIRED = "Bootstrap over users of the per-case difference; the best baseline is the best on these cases."
_COLUMNS = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@10", "mrr@10")


def write_report(
    metrics: Metrics, per_user: pl.DataFrame, directory: str | Path, text_queries: Metrics | None = None
) -> None:
    """Write the report into an existing directory; with `text_queries`, also text_queries.json."""
    directory = Path(directory)
    _write_json(metrics, directory / "metrics.json")
    per_user.write_parquet(directory / "per_user.parquet")
    if text_queries is not None:
        _write_json(text_queries, directory / "text_queries.json")
    (directory / "report.md").write_text(_markdown(metrics, text_queries), encoding="utf-8")
    _plot(metrics, directory / "report.png")


def table(metrics: Metrics, slice_name: str = "all") -> str:
    """Plain text for a terminal: one line per system that has the slice, with aligned numbers."""
    return plain(table_rows(metrics, slice_name))


def markdown_table(metrics: Metrics, slice_name: str = "all") -> str:
    """The table of `table` in Markdown."""
    return markdown(table_rows(metrics, slice_name))


def protocol_line(metrics: Metrics) -> str:
    """The protocol in one line: the split, the items that compete, the users, and whether seen items are left out."""
    protocol = metrics["protocol"]
    catalogue = f" over {protocol['items']:,} items" if "items" in protocol else ""
    if cold := protocol.get("cold_items"):
        catalogue += f" ({cold:,} of them cold" + (f", {protocol['regime']})" if "regime" in protocol else ")")
    seen = "left out" if protocol["filter_seen"] else "kept"
    split = f"{protocol['split']} split, " if "split" in protocol else ""
    return (
        f"{split}{protocol['part']} part, {protocol['ranking']} ranking{catalogue}, "
        f"{_asked(protocol)}, seen items {seen}, ties against the system"
    )


def cold_candidates_line(metrics: Metrics) -> str:
    """One line that explains the `cold_candidates` of metrics.json."""
    protocol = metrics["protocol"]
    return (
        f"not the full ranking: for the {_asked(protocol)} with a cold target, only the "
        f"{protocol['candidates']:,} cold items compete, so nothing here compares with the tables above; random is a "
        "random order of them"
    )


def _asked(protocol: dict[str, Any]) -> str:
    """The number of users, and the number of targets if some users have several."""
    users, targets = protocol["users"], protocol.get("targets", protocol["users"])
    return f"{users:,} users" + (f" ({targets:,} targets)" if targets > users else "")


def slice_rows(metrics: Metrics, names: Iterable[str]) -> list[list[str]]:
    """A header row, and one row per slice: its users, its distinct targets, and the recall@10 of each system."""
    systems = metrics["systems"]
    slices = next(iter(systems.values()))
    return [["slice", "users", "items", *systems]] + [
        [
            name,
            f"{slices[name]['users']:,}",
            f"{slices[name]['items']:,}",
            *(f"{one[name]['recall@10']:.4f}" for one in systems.values()),
        ]
        for name in names
    ]


def text_queries_line(metrics: Metrics) -> str:
    """One line that says which queries text_queries.json measures and what its fusions combine."""
    protocol = metrics["protocol"]
    return (
        f"{protocol['queries']:,} held-out intentions ({protocol['source']}), {protocol['ranking']} ranking over "
        f"{protocol['items']:,} items, ties against the system; hybrid-text fuses bm25 and dense by reciprocal ranks, "
        "hybrid these and llmrec"
    )


def _write_json(metrics: Metrics, path: Path) -> None:
    text = json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def table_rows(metrics: Metrics, slice_name: str) -> list[list[str]]:
    """A header row, and one row of cells per system; recall@10 and ndcg@10 have their interval in the cell."""
    slices = {name: entry[slice_name] for name, entry in metrics["systems"].items() if slice_name in entry}
    columns = [name for name in _COLUMNS if all(name in entry for entry in slices.values())]

    def cell(entry: dict[str, Any], column: str) -> str:
        value = f"{entry[column]:.4f}"
        if column not in INTERVAL_METRICS:
            return value
        low, high = entry[f"{column}_ci"]
        return f"{value} [{low:.4f}, {high:.4f}]"

    rows = [["system", *columns, "queries" if "queries" in metrics["protocol"] else "users"]]
    rows += [
        [name, *(cell(entry, column) for column in columns), f"{entry['users']:,}"] for name, entry in slices.items()
    ]
    if slice_name == "all" and "milliseconds_per_user" in metrics:
        taken = [f"{metrics['milliseconds_per_user'][name]:,.2f}" for name in slices]
        rows = [[*row, time] for row, time in zip(rows, ["ms/user", *taken], strict=True)]
    return rows


def paired_lines(metrics: Metrics) -> list[str]:
    """One line per metric and system: its paired difference from the best baseline, and llmrec's from the experts."""

    def line(metric: str, name: str, other: str, found: dict[str, Any]) -> str:
        low, high = found["interval"]
        p = f"p (Holm) {found['p_holm']:.3g}" if "p_holm" in found else f"p {found['p']:.3g}"
        return f"{metric}: {name} - {other} = {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}], {p}"

    lines = []
    for metric, entry in metrics.get("paired", {}).items():
        lines += [line(metric, name, entry["best"], found) for name, found in entry.get("systems", {}).items()]
        if "experts" in entry:
            lines.append(line(metric, "llmrec", "experts", entry["experts"]))
    return lines


def _markdown(metrics: Metrics, text_queries: Metrics | None) -> str:
    slices = next(iter(metrics["systems"].values()))
    parts = ["# Evaluation", f"{protocol_line(metrics)}. Brackets are bootstrap 95% intervals over users."]
    for name in MAIN:
        if name in slices:
            parts += [
                f"## Slice: {name}",
                f"{slices[name]['users']:,} users, {slices[name]['items']:,} distinct targets.",
            ]
            parts.append(markdown_table(metrics, name))
    if further := [name for name in slices if name not in MAIN]:
        parts += ["## Further slices: recall@10", markdown(slice_rows(metrics, further))]
    if "cold_candidates" in metrics:
        cold = metrics["cold_candidates"]
        parts += ["## Cold candidates only", f"{cold_candidates_line(cold).capitalize()}.", markdown_table(cold)]
    if text_queries is not None:
        parts += ["## In plain words", f"{text_queries_line(text_queries)}.", markdown_table(text_queries)]
        parts.append("\n".join(f"- {line}" for line in paired_lines(text_queries)))
    if lines := paired_lines(metrics):
        parts += ["## Paired differences", PAIRED, "\n".join(f"- {line}" for line in lines)]
    if "decode" in metrics:
        parts += ["## Decoding", "\n".join(f"- {name}: {value}" for name, value in metrics["decode"].items())]
    parts.append("![recall@10 and ndcg@10 with intervals](report.png)")
    return "\n\n".join(parts) + "\n"


def _plot(metrics: Metrics, path: Path) -> None:
    from matplotlib.figure import Figure

    systems = {name: entry["all"] for name, entry in metrics["systems"].items()}
    figure = Figure(figsize=(4 + 1.2 * len(systems), 3.6), layout="constrained")  # draws with Agg, no display
    for axes, metric in zip(figure.subplots(1, len(INTERVAL_METRICS)), INTERVAL_METRICS, strict=True):
        values = [entry[metric] for entry in systems.values()]
        lows = [entry[metric] - entry[f"{metric}_ci"][0] for entry in systems.values()]
        highs = [entry[f"{metric}_ci"][1] - entry[metric] for entry in systems.values()]
        # If the sample is skewed, a percentile interval may not contain the mean; an error bar can't be negative.
        errors = [[max(0.0, size) for size in sizes] for sizes in (lows, highs)]
        colors = ["tab:orange" if name == "llmrec" else "tab:gray" for name in systems]
        axes.bar(list(systems), values, yerr=errors, capsize=4, color=colors)
        axes.set_title(metric)
        axes.tick_params(axis="x", rotation=30)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


DATA = """{source}. After the filters: {users:,} users, {items:,} items, {interactions:,} interactions.
{kind} split: {events}."""


COLD = """Users with a warm target (with training events), and with a cold one:

{warm}

{cold}"""


ASKED = """Asked in plain words: {line}.

{table}"""


REPORTED = ("recall@10", "ndcg@10", "mrr@10")
"""The metrics that the Hub shows."""


def model_card(
    folder: Path,
    metrics: Metrics,
    text_queries: Metrics | None = None,
    data: Mapping[str, Any] | None = None,
    prepared: Path | None = None,
) -> str:
    """The text of README.md for the bundle in `folder`.

    Args:
        folder: the bundle.
        metrics: of its evaluation.
        text_queries: of queries in plain words, if measured.
        data: the section `data` of the configuration; None names no data.
        prepared: folder of the prepared data; None says nothing of what the filters left.
    """
    decode = metrics["decode"]
    parts = [f"{protocol_line(metrics).capitalize()}.", markdown_table(metrics)]
    if "cold_candidates" in metrics:
        parts.append(COLD.format(warm=markdown_table(metrics, "warm"), cold=markdown_table(metrics, "cold")))
    if text_queries is not None:
        parts.append(ASKED.format(line=text_queries_line(text_queries), table=markdown_table(text_queries)))
    parts.append(
        f"Decoding: ranking {decode['ranking']}, {decode['beams']} beams, scoring {decode['scoring']}, constraint "
        f"{decode['constraint']}, invalid answers {decode['invalid_rate']:.1%}."
    )
    name = _source(data) if data else "the run's data"
    return card_text(
        folder,
        Evaluated(
            "\n\n".join(parts),
            _results(metrics, name, data["format"] if data else "table"),
            _data_text(name, prepared) if prepared else "",
            _hub_datasets(data) if data else (),
        ),
    )


def _results(metrics: Metrics, dataset: str, kind: str) -> "list[EvalResult]":
    """What the Hub shows: the metrics of llmrec over all users."""
    from huggingface_hub import EvalResult

    own = metrics["systems"][OURS]["all"]
    return [
        EvalResult(
            task_type="recommendation",
            task_name="Sequential recommendation",
            dataset_type=kind,
            dataset_name=dataset,
            dataset_split=metrics["protocol"]["part"],
            metric_type=metric,
            metric_name=f"{metric}, full ranking",
            metric_value=round(own[metric], 6),
        )
        for metric in REPORTED
        if metric in own
    ]


def _source(data: Mapping[str, Any]) -> str:
    """The data in words: the format, and the name of the file, the folder or the data set, without its path."""
    if data["format"] == "synthetic":
        return f"The made-up shop of llmrec (seed {data['seed']})"
    name = data["path"] if data["format"] == "datasets" else Path(data["path"]).name
    return f"{data['format']}: {name}"


def _hub_datasets(data: Mapping[str, Any]) -> list[str]:
    """The id of the data set, if it is one of the Hub."""
    name = (data["path"] or "").partition("@")[0].partition(":")[0]
    return [name] if data["format"] == "datasets" and is_repo_id(name) and not Path(name).exists() else []


def _data_text(source: str, prepared: Path) -> str:
    split = json.loads((prepared / "split.json").read_text("utf-8"))
    protocol, last = split["protocol"], split["steps"][-1]
    events = ", ".join(f"{count:,} {part}" for part, count in protocol["events"].items())
    counts = {name: last[name] for name in ("users", "interactions")}
    return DATA.format(
        source=source, items=last["catalogue"], kind=protocol["kind"].capitalize(), events=events, **counts
    )
