"""`llmrec inspect`: print the contents of a run or a bundle, or write the report of a run."""

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrec.atomic import write_text
from llmrec.cli.command import Command, PlainParser
from llmrec.console import say
from llmrec.errors import UserError, system_words


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, print the contents."""
    parser = PlainParser(prog="llmrec inspect", description="Print the contents of a run or a bundle.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--run", metavar="DIR", help="a run directory")
    group.add_argument("--model", metavar="DIR_OR_HUB_ID", help="a bundle")
    parser.add_argument("--report", metavar="FILE", help="write a run's report there, one HTML page, and nothing else")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, nothing else")
    options = parser.parse_args(arguments)
    if options.report is not None:
        _write_report(options.run, Path(options.report))
        return
    content = describe_run(Path(options.run)) if options.run else describe_bundle(options.model)
    if options.json:
        print(json.dumps(content))
        return
    report, rounds = content.pop("tokenize", None), content.pop("refine", {})
    if old := content.pop("left_over", []):
        content["stages"]["left over, no longer in the configuration"] = old
    split = content.get("data", {}).get("split", {})
    if "cuts" in split:
        from llmrec.data.times import date

        split["cuts"] = [date(cut) for cut in split["cuts"]]
    if options.model:
        from llmrec.recommender.bundle import readable

        for part in ("bytes", "files"):
            content[part] = {name: readable(count) for name, count in content[part].items()}
    _print(content)
    if report:
        _print_report(report)
    for number, refined in rounds.items():
        _print_report(refined, f"tokenize, refined in round {number}")


def _write_report(run: str | None, path: Path) -> None:
    """Write the report of a run, which may be unfinished, to a new file.

    Raises:
        UserError: no run is named, it has no finished stage, or the file is there already or can't be written.
    """
    from llmrec.pipeline import FOLDERS
    from llmrec.run_report import run_report

    if run is None:
        raise UserError(f"--report {path}: reports are of runs; name one with --run instead of --model.")
    if os.path.lexists(path):
        raise UserError(f"--report {path}: is there already; name another file, or remove it.")
    text = run_report(Path(run), FOLDERS)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--report {path}: can't be written ({system_words(error)}).") from None
    say(f"The report: {path}")


def describe_run(folder: Path) -> dict[str, Any]:
    """The finished stages with their seconds and memory (and `left_over`, those that the configuration of the run no
    longer has), sizes of the data, the tokenizer's report (and `refine`, those of the refined ones, by round), the
    metrics."""
    from llmrec.data.prepare import load
    from llmrec.pipeline import FOLDERS, left_over
    from llmrec.refine_stages import refined_tokenizers

    if not os.path.isdir(folder):
        raise UserError(f"--run {folder}: no such folder.")
    manifests = {name: _json(folder / name / "manifest.json") for name in FOLDERS}
    manifests = {name: manifest for name, manifest in manifests.items() if manifest}
    if not manifests:
        raise UserError(f"--run {folder}: no finished stage there; start one with `llmrec run`.")
    old = left_over(folder)
    content: dict[str, Any] = {
        "stages": {
            name: {"seconds": manifest["seconds"], "peak_memory_gib": manifest["peak_memory_gib"]}
            for name, manifest in manifests.items()
            if name not in old
        }
    }
    if old:
        content["left_over"] = old
    if "data" in manifests:
        prepared = load(folder / "data")
        content["data"] = {"items": len(prepared.catalog), "split": prepared.split.protocol}
        content["data"]["steps"] = prepared.summary.to_dict()
    if "tokenize" in manifests:
        content["tokenize"] = _json(folder / "tokenize" / "report.json")
    if rounds := refined_tokenizers(folder):
        content["refine"] = {number: _json(path / "report.json") for number, path in rounds.items()}
    if "evaluate" in manifests:
        metrics = _json(folder / "evaluate" / "metrics.json")
        content["evaluate"] = _figures(metrics)
        content["decode"] = metrics["decode"]
        if spoken := _json(folder / "evaluate" / "text_queries.json"):
            content["text_queries"] = _figures(spoken)
    return content


def describe_bundle(name: str) -> dict[str, Any]:
    """The header; the size of the catalogue, its number of cold items and its fields; the weights of the fusion; three
    items with their codes; the bytes of each part and file; the tokenizer's report."""
    from dataclasses import asdict

    from llmrec.recommender import bundle
    from llmrec.recommender.bundle import sizes

    folder = bundle.locate(name)
    header = bundle.read_header(folder)
    index = bundle.read_index(folder)
    examples = {row["item_id"]: [*row["codes"], row["title"]] for row in index.head(3).iter_rows(named=True)}
    files = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if os.path.isfile(path)
    }
    return {
        "bundle": asdict(header),
        "items": len(index),
        "new_items": int((index[bundle.EVENTS] == 0).sum()),
        "fields": bundle.catalog_frame(index).columns[1:],
        "fusion": _json(folder / bundle.FUSION),
        "examples": examples,
        "bytes": sizes(folder),
        "files": files,
        "tokenize": _json(folder / bundle.QUANTIZER / "report.json"),
    }


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: slices["all"][key] for key in ("recall@10", "ndcg@10")}
        for name, slices in metrics["systems"].items()
    }


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if os.path.exists(path) else {}


def _print_report(figures: dict[str, Any], name: str = "tokenize") -> None:
    """Print a tokenizer's report under `name`: its table, and the words that describe the first codes."""
    from llmrec.quantize.report import Report

    if "level_sizes" not in figures:  # before schema 2 of the tokenizer
        raise UserError("the item tokenizer in there was made by an older llmrec; run `llmrec tokenize` again")
    report = Report(figures)
    say(name, *textwrap.indent(str(report), "  ").split("\n"))
    if words := report.words():
        say("  what the first codes stand for", *textwrap.indent(words, "    ").split("\n"))


def _print(content: Any, indent: int = 0) -> None:
    """Print nested dictionaries as indented lines."""
    for key, value in content.items():
        pad = "  " * indent
        if isinstance(value, dict):
            say(f"{pad}{key}")
            _print(value, indent + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            say(f"{pad}{key}")
            for entry in value:
                say(f"{pad}  " + ", ".join(f"{name} {inner}" for name, inner in entry.items()))
        elif isinstance(value, list):
            say(f"{pad}{key}: {', '.join(_number(inner) for inner in value)}")
        else:
            say(f"{pad}{key}: {_number(value)}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COMMAND = Command("print the contents of a run or a bundle, or write a run's report", main)
