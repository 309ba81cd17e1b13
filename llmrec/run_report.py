"""`report.html`: one run on one page, from the files of its folder.

    write_run_report(RunDirectory("runs/mine"), FOLDERS)      # runs/mine/evaluate/report.html

The page is one file: it loads nothing and runs no script. A section whose files the run lacks is left out.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from jinja2 import Environment, StrictUndefined

from llmrec.atomic import read_manifest
from llmrec.collaborative import fused
from llmrec.collaborative.fusion import FusionWeights
from llmrec.config import Config, with_new_names
from llmrec.console import get_logger, printable
from llmrec.embed import Embeddings
from llmrec.errors import UserError
from llmrec.evaluation.pictures import as_uri, loss_curve, slice_bars
from llmrec.evaluation.protocol import MAIN, OURS
from llmrec.evaluation.report import (
    PAIRED,
    cold_candidates_line,
    paired_lines,
    protocol_line,
    slice_rows,
    table_rows,
    text_queries_line,
)
from llmrec.quantize.base import sample
from llmrec.quantize.report import MAP_ITEMS, Report, map_picture
from llmrec.recommender.bundle import FUSION, readable
from llmrec.refine_stages import refined_tokenizers
from llmrec.rundir import CONFIG, RunDirectory
from llmrec.stage import differences

PAGE = "report.html"
LARGEST_CODES = 12
"""Number of first-level codes, the largest ones, that the page describes."""
FILES = {
    "model": "the bundle: an ordinary Hugging Face checkpoint, the items and their codes, the model card",
    "evaluate/metrics.json": "every system, slice and cut-off",
    "evaluate/per_user.parquet": "the rank of each user's target in every system",
    "evaluate/report.md": "the tables in Markdown",
    "evaluate/text_queries.json": "the requests in plain words",
    "evaluate/diagnosis.md": "where the language model loses the targets",
    "evaluate/frontier.md": "warm against cold items",
    "tokenize/report.json": "the semantic IDs in numbers",
    "tokenize/item_codes.parquet": "the codes of each item",
    "train/log.jsonl": "the losses",
    "refine": "per round the refined tokenizer, its report and the losses",
    "data/items.parquet": "the catalogue after the filters",
    "data/interactions.parquet": "the interactions after the filters, with their part of the split",
    CONFIG: "the whole configuration; `llmrec run --config` takes it",
}
"""Path in a run directory -> what is there."""

Rows = list[list[str]]

log = get_logger(__name__)


def write_run_report(run: RunDirectory, stages: Sequence[str]) -> None:
    """Write the page into the folder of the evaluation, unless a file of the user has its name there.

    Args:
        run: with a finished evaluation.
        stages: as for `run_report`.
    """
    path, files = run.path("evaluate") / PAGE, run.manifest("evaluate").get("files")
    if path.exists() and files is not None and PAGE not in files:
        log.warning(
            "%s is not of llmrec, so it stays; `llmrec inspect --run DIR --report FILE` writes the report", path
        )
        return
    run.amend("evaluate", {PAGE: run_report(run.folder, stages)})


def run_report(folder: Path, stages: Sequence[str]) -> str:
    """The text of the page.

    Args:
        folder: the run directory.
        stages: folders of the stages, in their order.

    Raises:
        UserError: no stage is finished.
    """
    manifests = _current(folder, stages)
    if not manifests:
        raise UserError(f"--run {folder}: no finished stage there; start one with `llmrec run`.")
    metrics = _json(folder / "evaluate" / "metrics.json") if "evaluate" in manifests else {}
    rounds = refined_tokenizers(folder) if "refine" in manifests else {}
    first = {0: folder / "tokenize"} if "tokenize" in manifests else {}
    losses = {"": folder / "train"} if "train" in manifests else {}
    losses |= {f", round {number}": folder / "refine" / f"round-{number}" for number in rounds}
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_clean
    ).from_string(Path(__file__).with_suffix(".html").read_text("utf-8"))
    return page.render(
        name=folder.absolute().name,
        versions=next(reversed(manifests.values()))["packages"],
        results=_results(folder, metrics) if metrics else None,
        slices=_slices(metrics) if metrics else None,
        training=_training({name: _lines(path / "log.jsonl") for name, path in losses.items()}) if losses else None,
        fusions=_fusions(folder, manifests),
        codes=_codes(folder, first | rounds, manifests) if first else None,
        data=_data(folder) if "data" in manifests else None,
        settings=_settings(folder / CONFIG),
        stages=_stages(manifests),
        files=_files(folder, manifests),
        steps=next_steps(folder, stages),
    )


def next_steps(folder: Path, stages: Sequence[str]) -> list[tuple[str, str]]:
    """What the user may do next with a run, as (what it does, the command); the arguments are those of `run_report`."""
    manifests = _current(folder, stages)
    run, model = shlex.quote(str(folder)), shlex.quote(str(folder / "model"))
    again = f"llmrec run --config {shlex.quote(str(folder / CONFIG))} --run {run}"
    if "model" not in manifests:
        return [("make the other stages", again)]
    steps = [
        ("ask it in words", f'llmrec recommend --model {model} --prompt "what you look for"'),
        ("open its page in a browser", f"llmrec serve --model {model}"),
    ]
    config = _config(folder / CONFIG)
    metrics = _json(folder / "evaluate" / "metrics.json") if "evaluate" in manifests else {}
    better = _best_other(metrics, better=True) if metrics else None
    if better is not None and not config.get("experts", {}).get("models"):
        models = "[decayed-markov, smoothed-markov, text, last-text, popularity, item-knn]"
        steps.append((f"{better} ranks better here: fuse experts with it", f'{again} --experts.models "{models}"'))
    losses = [line["eval_loss"] for line in _lines(folder / "train" / "log.jsonl") if "eval_loss" in line]
    if len(losses) > 1 and min(losses) == losses[-1] and (epochs := config.get("train", {}).get("epochs")):
        reason = "the validation loss still fell at the end: train longer"
        steps.append((reason, f"{again} --train.epochs {2 * epochs:g}"))
    if metrics and not config.get("evaluate", {}).get("diagnose"):
        steps.append(("see where it loses the targets", f"{again} --evaluate.diagnose 500"))
    return [*steps, ("publish it", f"llmrec push --model {model} --repo-id org/name")]


def _current(folder: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The manifests of the finished stages, without those that read a stage which was made again since."""
    manifests: dict[str, dict[str, Any]] = {}
    for name in stages:
        found = read_manifest(folder / name)
        read = {} if found is None else {stage: key for stage, key in found["inputs"].items() if stage in stages}
        if found is not None and all(stage in manifests and manifests[stage]["key"] == read[stage] for stage in read):
            manifests[name] = found
    return manifests


def _results(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """The tables of the evaluation, as (heading, explanation, rows)."""
    tables: list[tuple[str, str, Rows]] = [("All users", f"{protocol_line(metrics)}.", table_rows(metrics, "all"))]
    if "cold_candidates" in metrics:
        cold = metrics["cold_candidates"]
        tables += [
            (f"{name.capitalize()} targets", "", table_rows(metrics, name))
            for name in MAIN[1:]
            if name in metrics["systems"][OURS]
        ]
        tables.append(("Cold items only", f"{cold_candidates_line(cold)}.", table_rows(cold, "all")))
    paired = paired_lines(metrics)
    if words := _json(folder / "evaluate" / "text_queries.json"):
        tables.append(("Requests in plain words", f"{text_queries_line(words)}.", table_rows(words, "all")))
        paired += [f"in plain words, {line}" for line in paired_lines(words)]
    own = metrics["systems"][OURS]["all"]
    return {
        "recall": own["recall@10"],
        "interval": own["recall@10_ci"],
        "other": _best_other(metrics),
        "recall_other": max((entry["all"]["recall@10"] for entry in _others(metrics).values()), default=None),
        "tables": tables,
        "paired": paired,
        "paired_words": PAIRED,
    }


def _others(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in metrics["systems"].items() if name != OURS}


def _best_other(metrics: dict[str, Any], better: bool = False) -> str | None:
    """The other system with the best recall@10; with `better`, None if it is not better than llmrec's."""
    recalls = {name: entry["all"]["recall@10"] for name, entry in _others(metrics).items()}
    best = max(recalls, key=recalls.__getitem__, default=None)
    if best is None or (better and recalls[best] <= metrics["systems"][OURS]["all"]["recall@10"]):
        return None
    return best


def _slices(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """The picture of recall by slice and its table; None if the evaluation has only one slice."""
    own = metrics["systems"][OURS]
    names = [name for name in own if name != "all"]
    other = _best_other(metrics)
    return {"picture": slice_bars(metrics, ["all", *names], other), "rows": slice_rows(metrics, own)} if names else None


def _training(logs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The curves and the table of the losses; None if there are none. `logs`: end of the losses' names -> lines."""
    losses = {"Training loss": "loss", "Validation loss": "eval_loss"}
    rows = [["loss", "first", "last", "lowest", "at step"]]
    pictures = []
    for (suffix, log), (name, key) in product(logs.items(), losses.items()):
        points = [(line[key], line["step"]) for line in log if key in line]
        if points:
            lowest, step = min(points)
            rows.append([name + suffix, f"{points[0][0]:.4f}", f"{points[-1][0]:.4f}", f"{lowest:.4f}", f"{step:,}"])
        pictures.append((name + suffix, loss_curve(log, key, name.lower())))
    shown = [(name, picture) for name, picture in pictures if picture is not None]
    return {"pictures": shown, "rows": rows} if any(logs.values()) else None


def _fusions(folder: Path, manifests: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """The weights of the language model's features and of the experts, as (caption, rows)."""
    tables: list[tuple[str, Rows]] = []
    fusion, experts = folder / "model" / FUSION, folder / "experts" / fused.CONFIG
    if "model" in manifests and fusion.is_file():
        weights = FusionWeights.load(fusion)
        tables.append(("The language model's ranking, as its features are added up", _weight_rows(weights)))
    if "experts" in manifests:
        weights = FusionWeights.of(_json(experts)["weights"])
        tables.append(("The experts, as their scores are added up", _weight_rows(weights)))
    return tables


def _weight_rows(weights: FusionWeights) -> Rows:
    columns = zip(weights.features, weights.warm, weights.cold, strict=True)
    rows = [["feature", "warm items", "cold items"]]
    rows += [[name, f"{warm:+.3f}", f"{cold:+.3f}"] for name, warm, cold in columns]
    return [*rows, ["added to cold items", "", f"{weights.bonus:+.3f}"]]


def _codes(folder: Path, tokenizers: Mapping[int, Path], manifests: Mapping[str, Any]) -> dict[str, Any] | None:
    """The semantic IDs that the model has, those of the last round. `tokenizers`: round -> folder, 0 for the first fit.
    None for a run of an older llmrec, whose report has other figures."""
    reports = {number: _json(path / "report.json") for number, path in tokenizers.items()}
    last, report = max(reports.items())
    if "level_sizes" not in report:
        return None
    columns = {"codes": "level_sizes", "used": "usage", "perplexity": "perplexity", "distortion": "distortion_by_level"}
    values = [report[key] or ["-"] * report["levels"] for key in columns.values()]
    rows = [["level", *columns]]
    for level, (size, used, perplexity, distortion) in enumerate(zip(*values, strict=True), 1):
        error = distortion if distortion == "-" else f"{distortion:.3f}"
        rows.append([str(level), f"{size:,}", f"{used:.1%}", f"{perplexity:.1f}", error])
    largest = [
        {
            "code": f"{entry['code']:,}",
            "items": f"{entry['items']:,}",
            "words": ", ".join(entry["words"]),
            "typical": [item["title"] for item in entry["typical"]],
        }
        for entry in (report["words"] or [])[:LARGEST_CODES]
    ]
    return {
        "headline": Report(report).headline,
        "map": _map(folder, tokenizers[last], report) if "embed" in manifests else None,
        "rows": rows,
        "rounds": _rounds(reports) if last else None,
        "collisions": f"{report['collision_rate']:.2%}",
        "largest": largest,
    }


def _rounds(reports: Mapping[int, dict[str, Any]]) -> Rows:
    """A row per tokenizer: the first one, and that of each round."""
    rows = [["tokenizer", "least used level", "collisions", "neighbours kept (Jaccard@20)"]]
    for number, report in reports.items():
        figures = [f"{min(report['usage']):.1%}", f"{report['collision_rate']:.2%}"]
        rows.append([f"round {number}" if number else "first", *figures, f"{report['neighbour_jaccard@20']:.4f}"])
    return rows


def _map(folder: Path, tokenizer: Path, report: dict[str, Any]) -> str:
    """The map of the items."""
    items = pl.read_parquet(tokenizer / "item_codes.parquet")
    items = items[sample(np.arange(len(items)), MAP_ITEMS, seed=0)]
    vectors = Embeddings.load(folder / "embed", items["item_id"].to_list()).vectors
    return as_uri("png", map_picture(Report(report), vectors, items["codes"].list.first().to_numpy()))


def _data(folder: Path) -> dict[str, Any]:
    content = _json(folder / "data" / "split.json")
    protocol, steps = content["protocol"], content["steps"]
    columns = ("users", "items", "interactions", "dropped", "catalogue")
    return {
        "last": steps[-1],
        "split": protocol["kind"],
        "regime": protocol.get("regime"),
        "events": {part: f"{count:,}" for part, count in protocol["events"].items()},
        "rows": [["step", *columns]] + [[one["step"], *(f"{one[name]:,}" for name in columns)] for one in steps],
    }


def _settings(path: Path) -> Rows:
    """A row per field of the configuration that differs from its default; only the header if none does."""
    defaults = asdict(Config())
    rows = [["setting", "value", "default"]]
    for section, values in _config(path).items():
        changed = differences(values, defaults.get(section, {}))
        rows += [
            [f"{section}.{name}", _written(own), _written(default)]
            for name, (own, default) in changed.items()
            if own != "unset"  # a field that the llmrec of that run did not have
        ]
    return rows


def _stages(manifests: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    peaks = {name: manifest["peak_memory_gib"] for name, manifest in manifests.items()}
    longest = max(seconds.values()) or 1
    return {
        "seconds": f"{sum(seconds.values()):,.0f}",
        "peak": f"{max(peaks.values()):.1f}",
        "rows": [
            {"name": name, "seconds": f"{taken:,.1f}", "share": f"{taken / longest:.1%}", "peak": f"{peaks[name]:.2f}"}
            for name, taken in seconds.items()
        ],
    }


def _files(folder: Path, manifests: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(path, what is there, size) of each of `FILES` that the run has."""
    return [
        (name, what, readable(sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())))
        for name, what in FILES.items()
        if (name == CONFIG or name.partition("/")[0] in manifests) and (path := folder / name).exists()
    ]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clean(value: Any) -> Any:
    """What the template prints: text of others without control characters; markup and numbers as they are."""
    return printable(value) if type(value) is str else value


def _config(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config.yaml with the current names of their fields; empty if there is none."""
    content = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    return {section: with_new_names(section, values) for section, values in content.items()}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
