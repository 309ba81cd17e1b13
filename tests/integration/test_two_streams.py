"""`--tokenize.behaviour` as a user runs it: trained, calibrated, evaluated, asked, grown and trained further."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl

from llmrec.recommender.recommender import Recommender

Program = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_with_two_streams(
    llmrec: Program, fails: Callable[..., str], run_copy: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    two = ["--tokenize.behaviour", "16"]
    flags = [*tiny_flags, *two]
    shown = json.loads(llmrec("tasks", "show", "--run", run_copy, *flags, "--examples", "40", "--json").stdout)
    texts = ["".join(span["text"] for span in each["spans"]) for each in shown["tasks"][0]["examples"]]
    assert {"<behaviour_a_" in text for text in texts} == {True, False}, "examples of both streams"

    measured = ["--evaluate.max_users", "40", "--evaluate.baselines", "[]"]
    rankings = ["--evaluate.rankings", "[beam,behaviour,streams]"]
    result = llmrec("run", "--run", run_copy, *flags, *measured, *rankings)
    assert result.returncode == 0, result.stderr
    systems = json.loads((run_copy / "evaluate" / "metrics.json").read_text())["systems"]
    assert {"llmrec", "beam", "behaviour", "streams"} <= systems.keys()
    model = run_copy / "model"
    fusion = model / "fusion.json"
    if fusion.exists():
        assert "behaviour" in json.loads(fusion.read_text())["features"]

    recommender = Recommender.from_pretrained(model)
    history = recommender.catalog.ids[:3]
    expected = [answer.item_id for answer in recommender.recommend(history, k=3)]
    asked = llmrec("recommend", "--model", model, "--history", *history, "--k", "3", "--json")
    assert [item["item_id"] for item in json.loads(asked.stdout)["items"]] == expected
    assert llmrec("inspect", "--model", model, "--json").returncode == 0
    assert llmrec("inspect", "--run", run_copy).returncode == 0

    pl.DataFrame({"item_id": ["new"], "title": ["a gentle shampoo"]}).write_parquet(tmp_path / "items.parquet")
    grown = llmrec("add-items", "--model", model, "--items", tmp_path / "items.parquet")
    assert grown.returncode == 0, grown.stderr
    larger = Recommender.from_pretrained(model)
    assert larger.item_tokenizer.behaviour.known.tolist() == [*recommender.item_tokenizer.behaviour.known, False]

    again = ["--base.model", str(model)]
    line = fails("train", "--run", tmp_path / "other", *tiny_flags, *again)
    assert "--tokenize.behaviour 0:" in line
    assert line.endswith("with tokenize.behaviour 16; set it to 16, or name another base model.")
    further = llmrec("train", "--run", tmp_path / "further", *flags, *again)
    assert further.returncode == 0, further.stderr
    kept = Recommender.from_pretrained(tmp_path / "further" / "train" / "bundle")
    codes = dict(zip(larger.catalog.ids, larger.item_tokenizer.behaviour.codes.tolist(), strict=True))
    assert kept.item_tokenizer.behaviour.codes.tolist() == [codes[item] for item in kept.catalog.ids]
