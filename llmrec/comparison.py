"""Compare item tokenizers: fit each on the same embeddings and, on request, train a recommender on each.

Each fit has its own run directory in DIR/compare/, so that a stopped comparison continues where it stopped:

    DIR/compare/NAME/seed-0/           tokenize/, and with a recommender base/ train/ model/ evaluate/
    DIR/compare/comparison.json        all results and settings
    DIR/compare/comparison.md, .png    the table and the picture
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import mean, stdev
from typing import Any, BinaryIO

from llmrec import pipeline
from llmrec.atomic import write_file
from llmrec.children import Children
from llmrec.config import Config
from llmrec.console import get_logger, markdown
from llmrec.rundir import RunDirectory

log = get_logger(__name__)

Comparison = dict[str, Any]
"""The content of comparison.json: `seeds`; `protocol` and `baselines` of the evaluation (null without recommenders);
and `methods`, name -> `tokenize` (its settings), `runs` (one per seed: `report`, `metrics`), `mean` and `std`."""

COMPARE = pipeline.COMPARE
SHARED = ("data", "embed")
DOWNSTREAM = ("recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10")


def compare(
    config: Config, contenders: Mapping[str, Config], run: RunDirectory, seeds: int, downstream: bool
) -> Comparison:
    """Fit each contender with `seeds` different seeds and collect the figures.

    Args:
        config: of the run directory, which records it.
        contenders: name -> configuration; they differ from it only in their `tokenize` sections.
        run: the run directory whose data and embeddings all contenders use; missing stages are run first.
        seeds: number of fits per contender. Fit i adds i = 0, 1, ... to the configured seeds of tokenizer, base model
            and training.
        downstream: also train and evaluate a recommender on each tokenizer, as its configuration says.

    Returns:
        The content of comparison.json, which is also written, with the table and the picture.

    Raises:
        UserError: a tokenizer can't be fitted on these embeddings, or llmrec did not make a folder that it needs.
            Finished fits are kept.
    """
    children = Children(run, COMPARE)
    for name in contenders:  # claim all folders before any computation
        for offset in range(seeds):
            children.open(name, offset)
    pipeline.run(config, run, until="embed")
    methods: dict[str, dict[str, Any]] = {}
    for name, config in contenders.items():
        runs = []
        for offset in range(seeds):
            log.info("%s, seed %d of %d", name, offset + 1, seeds)
            child = children.open(name, offset)
            children.share(child, SHARED)
            runs.append(_one(with_seed(config, offset), child, downstream))
        figures = [_figures(one) for one in runs]
        methods[name] = {
            "tokenize": asdict(config.tokenize),
            "runs": runs,
            "mean": {key: mean(one[key] for one in figures) for key in figures[0]},
            "std": {key: stdev(one[key] for one in figures) if seeds > 1 else 0.0 for key in figures[0]},
        }
    measured = next(iter(methods.values()))["runs"][0]["metrics"]
    comparison = {
        "seeds": seeds,
        "protocol": measured and measured["protocol"],
        "baselines": measured
        and {name: entry["all"] for name, entry in measured["systems"].items() if name != "llmrec"},
        "methods": methods,
    }
    if run.main:
        run.write(f"{COMPARE}/comparison.json", json.dumps(comparison, indent=1) + "\n")
        run.write(f"{COMPARE}/comparison.md", markdown(rows(comparison)) + "\n")
        with run.reporting():
            write_file(run.path(COMPARE) / "comparison.png", lambda file: _plot(comparison, file))
    return comparison


def rows(comparison: Comparison) -> list[list[str]]:
    """The table: a header, a row per method and, with recommenders, a row per baseline; ± is the std over seeds."""
    seeds, downstream = comparison["seeds"], comparison["protocol"] is not None
    header = ["method", "codes", "usage", "perplexity", "collisions", "after", "distortion", "jaccard@20", "fit s"]
    table = [header + (list(DOWNSTREAM) if downstream else [])]
    for name, entry in comparison["methods"].items():
        average, spread = entry["mean"], entry["std"]
        sizes = entry["runs"][0]["report"]["level_sizes"]
        row = [
            name,
            f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else "-".join(map(str, sizes)),
            f"{average['usage']:.0%}",
            f"{average['perplexity']:.0f}",
            f"{average['collision_rate']:.2%}",
            f"{average['collision_rate_after']:.2%}",
            f"{average['distortion']:.3f}",
            f"{average['neighbour_jaccard@20']:.3f}",
            f"{average['fit_seconds']:.1f}",
        ]
        if downstream:
            row += [f"{average[key]:.4f}" + (f" ±{spread[key]:.4f}" if seeds > 1 else "") for key in DOWNSTREAM]
        table.append(row)
    for name, entry in (comparison["baselines"] or {}).items():
        blank = [""] * (len(header) - 1)
        table.append([f"({name})", *blank, *(f"{entry[key]:.4f}" for key in DOWNSTREAM)])
    return table


def with_seed(config: Config, offset: int) -> Config:
    """The configuration with `offset` added to the seeds of tokenizer, base model and training."""
    return replace(
        config,
        tokenize=replace(config.tokenize, seed=config.tokenize.seed + offset),
        base=replace(config.base, seed=config.base.seed + offset),
        train=replace(config.train, seed=config.train.seed + offset),
    )


def _one(config: Config, run: RunDirectory, downstream: bool) -> dict[str, Any]:
    """Fit a tokenizer and, if `downstream`, train on it. Returns `seed`, `report` and `metrics` (or None)."""
    pipeline.run(config, run, until="evaluate" if downstream else "tokenize")
    report = json.loads((run.path("tokenize") / "report.json").read_text("utf-8"))
    return {
        "seed": config.tokenize.seed,
        "report": {key: value for key, value in report.items() if key != "words"},
        "metrics": pipeline.metrics(run) if downstream else None,
    }


def _figures(one: Mapping[str, Any]) -> dict[str, float]:
    """One number per column of the table. Usage is the minimum over the levels, perplexity the mean over the levels."""
    report, metrics = one["report"], one["metrics"]
    names = ("collision_rate", "collision_rate_after", "distortion", "neighbour_jaccard@20", "fit_seconds")
    figures = {"usage": min(report["usage"]), "perplexity": mean(report["perplexity"])}
    figures |= {name: report[name] for name in names}
    if metrics:
        figures |= {name: metrics["systems"]["llmrec"]["all"][name] for name in DOWNSTREAM}
    return figures


def _plot(comparison: Comparison, file: BinaryIO) -> None:
    """Draw one panel per figure and one bar per method; the error bar is the standard deviation over seeds."""
    from matplotlib.figure import Figure

    methods = comparison["methods"]
    panels: Sequence[str] = ["distortion", "collision_rate", "neighbour_jaccard@20"]
    if comparison["protocol"]:
        panels = [*panels, "recall@10", "ndcg@10"]
    figure = Figure(figsize=(2.6 * len(panels) + 1.5, 1.2 + 0.26 * len(methods)), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        averages = [entry["mean"][key] for entry in methods.values()]
        axes.barh(list(methods), averages, xerr=[entry["std"][key] for entry in methods.values()], color="tab:blue")
        axes.set_title(key, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(file, format="png", dpi=120)
