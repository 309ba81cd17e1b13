"""`recommend` and `inspect` on a finished run."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.cli.main import main

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def items(tiny_run: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_run / "data" / "items.parquet")


@pytest.fixture
def ask(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """`ask(*words)` -> the items of `llmrec recommend --json`, checked against the contract."""

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["recommend", "--model", str(tiny_run / "model"), *words, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) == {"items", "seconds"}
        assert answer["seconds"] > 0
        answers = answer["items"]
        assert [item["rank"] for item in answers] == list(range(1, len(answers) + 1))
        scores = [item["score"] for item in answers]
        assert scores == sorted(scores, reverse=True)
        assert len({item["item_id"] for item in answers}) == len(answers)
        return answers

    return run


def test_stdout_is_one_document_and_stderr_is_quiet(tiny_run: Path, llmrec: Program, items: pl.DataFrame) -> None:
    history = items["item_id"][:2].to_list()
    result = llmrec("recommend", "--model", tiny_run / "model", "--history", *history, "--json")
    assert result.returncode == 0
    assert len(json.loads(result.stdout)["items"]) == 10
    assert result.stderr == ""


def test_recommend_without_json(tiny_run: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", "--model", str(tiny_run / "model"), "--history", items["item_id"][0], "--k", "3"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == [1, 2, 3]
    assert all(line.split()[1] in set(items["item_id"]) for line in lines)


@pytest.mark.parametrize("words", [
    ["--history", "{0}", "{1}"],
    ["--prompt", "a warm sleeping bag"],
    ["--history", "{0}", "{1}", "--prompt", "a warm sleeping bag"],
])  # fmt: skip
def test_recommend(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame, words: list[str]) -> None:
    history = items["item_id"][:2].to_list()
    answers = ask(*(word.format(*history) for word in words), "--k", "7")
    assert len(answers) == 7
    rows = {row["item_id"]: row for row in items.iter_rows(named=True)}
    for answer in answers:
        row = rows[answer["item_id"]]
        assert {name: answer[name] for name in row} == row
    if "--history" in words:
        assert not {answer["item_id"] for answer in answers} & set(history)


def test_all_items_come_out(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame) -> None:
    history = items["item_id"][:2].to_list()
    answers = ask("--history", *history, "--k", str(len(items)))
    assert {answer["item_id"] for answer in answers} == set(items["item_id"]) - set(history)
    answers = ask("--history", *history, "--k", str(len(items)), "--include-seen")
    assert {answer["item_id"] for answer in answers} == set(items["item_id"])


def test_exclude(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame) -> None:
    history = items["item_id"][0]
    free = [answer["item_id"] for answer in ask("--history", history, "--k", "5")]
    rest = [answer["item_id"] for answer in ask("--history", history, "--k", "5", "--exclude", *free[:2])]
    assert rest[:3] == free[2:]
    assert not set(rest) & set(free[:2])


def test_where(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame) -> None:
    brand = items["brand"].value_counts(sort=True)["brand"][0]
    expected = set(items.filter(pl.col("brand") == brand)["item_id"]) - {items["item_id"][0]}
    answers = ask("--history", items["item_id"][0], "--where", f"brand={brand.upper()}", "--k", str(len(items)))
    assert {answer["item_id"] for answer in answers} == expected
    assert ask("--history", items["item_id"][0], "--where", "brand=none of them") == []


def inspected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def test_inspect_run(tiny_run: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(inspected(capsys, "--run", str(tiny_run), "--json"))
    assert list(content["stages"]) == ["data", "embed", "tokenize", "base", "train", "model", "evaluate"]
    assert content["data"]["items"] == len(items)
    assert content["tokenize"] == json.loads((tiny_run / "tokenize" / "report.json").read_text())
    metrics = json.loads((tiny_run / "evaluate" / "metrics.json").read_text())
    assert content["evaluate"]["markov"]["recall@10"] == metrics["systems"]["markov"]["all"]["recall@10"]
    assert content["decode"] == metrics["decode"]
    words = inspected(capsys, "--run", str(tiny_run))
    assert f"items: {len(items)}" in words
    assert f"rq-kmeans: {len(items)} items, 3 levels x 32 codes" in words
    described = content["tokenize"]["words"]
    assert f"code {described[0]['code']}: {described[0]['items']} items; " in words
    assert described[0]["typical"][0]["title"] in words
    assert content["tokenize"]["emb_hr@20"]["raw"] > 0


def test_inspect_bundle(tiny_run: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_run / "model"
    content = json.loads(inspected(capsys, "--model", str(folder), "--json"))
    assert content["bundle"] == json.loads((folder / "llmrec.json").read_text())
    assert content["items"] == len(items)
    assert content["tokenize"]["method"] == "rq-kmeans"
    assert content["fields"] == items.columns[1:]
    assert set(content["files"]) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert items["title"][0] in inspected(capsys, "--model", str(folder))
