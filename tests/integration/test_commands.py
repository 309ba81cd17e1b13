"""`recommend` and `inspect` on a finished run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tolerances import BFLOAT16

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
        assert set(answer) == {"items", "reason", "notes", "seconds"}
        assert answer["seconds"] > 0
        answers = answer["items"]
        wanted = int(words[words.index("--k") + 1]) if "--k" in words else 10
        assert (answer["reason"] is None) == (len(answers) == wanted)
        assert [item["rank"] for item in answers] == list(range(1, len(answers) + 1))
        scores = [item["score"] for item in answers]
        assert scores == sorted(scores, reverse=True)
        assert len({item["item_id"] for item in answers}) == len(answers)
        return answers

    return run


def test_stdout_is_one_document_and_stderr_is_quiet(
    tiny_run: Path, llmrec_process: Program, items: pl.DataFrame
) -> None:
    history = items["item_id"][:2].to_list()
    result = llmrec_process("recommend", "--model", tiny_run / "model", "--history", *history, "--json")
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
        assert {"item_id": answer["item_id"], "title": answer["title"], **answer["fields"]} == row
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


def test_allow(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame) -> None:
    history, *some = items["item_id"][[0, 5, 50, 100, 150]]
    answers = ask("--history", history, "--allow", *some, history, "--k", "4")
    assert {answer["item_id"] for answer in answers} == set(some)
    answers = ask("--history", history, "--allow", *some[:2], "--allow", *some[2:], "--exclude", some[0], "--k", "3")
    assert {answer["item_id"] for answer in answers} == set(some[1:])


def test_boost(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame, tmp_path: Path) -> None:
    history, *some = items["item_id"][[0, 5, 50, 100, 150]]
    file = tmp_path / "boost.csv"
    file.write_text("item_id,offset,why\n" + "".join(f"{item},{100 + n},new\n" for n, item in enumerate(some)))
    answers = ask("--history", history, "--boost", str(file), "--k", "4")
    assert [answer["item_id"] for answer in answers] == [item for _, item in sorted(
        ((answer["score"], answer["item_id"]) for answer in answers), reverse=True
    )]  # fmt: skip
    assert {answer["item_id"] for answer in answers} == set(some)
    assert all(answer["score"] > 50 for answer in answers)


def test_max_per(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame, tiny_run: Path) -> None:
    codes = pl.read_parquet(tiny_run / "model" / "item_index.parquet")
    first = dict(zip(codes["item_id"], codes["codes"].list.first(), strict=True))
    words = ["--history", items["item_id"][0], "--k", "40"]
    brands = [answer["fields"]["brand"] for answer in ask(*words, "--max-per", "brand=2")]
    assert max(brands.count(brand) for brand in brands if brand) <= 2
    answers = [answer["item_id"] for answer in ask(*words, "--max-per-code", "1")]
    assert len({first[item] for item in answers}) == len(answers)
    free = [answer["item_id"] for answer in ask(*words)]
    assert answers[0] == free[0]
    assert len({first[item] for item in free}) < len(free), "or the limit changed nothing"


def test_exact(ask: Callable[..., list[dict[str, Any]]], items: pl.DataFrame) -> None:
    words = ["--history", items["item_id"][0]]
    whole = ask(*words, "--k", str(len(items) - 1), "--ranking", "beam")
    exact = ask(*words, "--k", "5", "--exact")
    scores = [answer["score"] for answer in whole[:5]]
    assert [answer["score"] for answer in exact] == pytest.approx(scores, abs=BFLOAT16)


def test_exact_takes_no_other_ranking(tiny_run: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny_run / "model"), "--history", items["item_id"][0], "--exact", "--ranking", "dense"]
    assert main(["recommend", *words]) == 2
    assert "--exact ranks by codes alone, which --ranking dense does not" in capsys.readouterr().err


def test_too_few_answers_are_explained(tiny_run: Path, items: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", "--model", str(tiny_run / "model"), "--prompt", "a mug"]
    assert main([*words, "--where", "brand=none of them"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"No item passes the filters: the catalogue has {len(items)} items, --where brand=none of them leaves 0"
    ]
    assert main([*words, "--allow", *items["item_id"][:3]]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err.startswith("3 of the 10 asked for: ")
    assert main([*words, "--where", "brand=none of them", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["reason"].endswith("leaves 0")
    assert captured.err == ""


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


def test_a_reader_that_has_seen_enough(tiny_run: Path) -> None:
    command = [sys.executable, "-m", "llmrec", "inspect", "--run", str(tiny_run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        head = subprocess.run(["head", "-c", "10"], stdin=program.stdout, capture_output=True, check=True)
        program.stdout.close()
        assert program.stderr.read() == b""
    assert len(head.stdout) == 10


def test_predict(
    ask: Callable[..., list[dict[str, Any]]],
    tiny_run: Path,
    items: pl.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    history = items["item_id"][:2].to_list()
    (tmp_path / "users.csv").write_text(f"user_id,history\nu,{' '.join(history)}\nv,NOSUCH\n")
    words = ["predict", "--model", str(tiny_run / "model"), "--input", str(tmp_path / "users.csv"), "--k", "3"]
    assert main([*words, "--output", str(tmp_path / "recs.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 2
    rows = [json.loads(line) for line in (tmp_path / "recs.jsonl").read_text().splitlines()]
    expected = [answer["item_id"] for answer in ask("--history", *history, "--k", "3")]
    assert [row["item_id"] for row in rows if row["user_id"] == "u"] == expected
    assert rows[-1]["note"].startswith("Left out 1 of the 1 items of the history, not in the catalogue: 'NOSUCH'. The")
    assert main([*words, "--output", str(tmp_path / "recs.jsonl")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "more.jsonl"), "--where", "colour=red"]) == 2
    assert "--where colour=red: no such field" in capsys.readouterr().err
