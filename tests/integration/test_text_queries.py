"""A run with intentions measures plain-words queries, and `explain` puts its codes into words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.cli.main import main

ASKED = 12
SYSTEMS = ["llmrec", "bm25", "dense", "hybrid-text", "hybrid"]


@pytest.fixture(scope="module")
def run(llmrec: Callable[..., Any], tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run in which 12 items were asked for by their titles, and as many taught."""
    folder = tmp_path_factory.mktemp("asked")
    assert llmrec("prepare", "--run", folder / "run", *tiny_flags).returncode == 0
    items = pl.read_parquet(folder / "run" / "data" / "items.parquet").head(2 * ASKED)
    intentions = items.select("item_id", text="title").with_columns(held_out=pl.Series([True, False] * ASKED))
    intentions.write_csv(folder / "intentions.csv")
    source = ["--intentions.source", "file", "--intentions.path", folder / "intentions.csv"]
    result = llmrec("run", "--run", folder / "run", *tiny_flags, *source)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_text_queries_are_measured(run: Path) -> None:
    metrics = json.loads((run / "evaluate" / "text_queries.json").read_text())
    protocol = metrics["protocol"]
    assert (protocol["source"], protocol["queries"], protocol["ranking"]) == ("file", ASKED, "full")
    assert protocol["items"] == len(pl.read_parquet(run / "data" / "items.parquet"))
    systems = {name: entry["all"] for name, entry in metrics["systems"].items()}
    assert list(systems) == SYSTEMS
    for name in ("bm25", "dense", "hybrid-text"):
        assert systems[name]["recall@5"] >= 0.9, "who asks with the title of an item gets it"
    for entry in systems.values():
        low, high = entry["recall@10_ci"]
        assert low <= entry["recall@10"] <= high
        assert entry["users"] == ASKED
    report, card = (run / "evaluate" / "report.md").read_text(), (run / "model" / "README.md").read_text()
    for text in (report, card):
        assert "12 held-out intentions (file), full ranking" in text
        assert "| hybrid-text |" in text


def test_requests_are_ranked_by_their_words_too(run: Path, llmrec: Callable[..., Any], tiny_flags: list[str]) -> None:
    """With a dense head and enough requests the answer goes by BM25 and the encoder, too."""
    folder = run.parent / "dense"
    items = pl.read_parquet(run / "data" / "items.parquet").head(120)
    intentions = items.select("item_id", text="title").with_columns(held_out=pl.lit(True))
    intentions.vstack(intentions.head(5).with_columns(held_out=pl.lit(False))).write_csv(run.parent / "many.csv")
    source = ["--intentions.source", "file", "--intentions.path", run.parent / "many.csv", "--train.dense.weight", "1"]
    result = llmrec("run", "--run", folder, *tiny_flags, *source)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((folder / "evaluate" / "text_queries.json").read_text())
    systems = {name: entry["all"]["recall@5"] for name, entry in metrics["systems"].items()}
    assert list(systems) == ["llmrec", "language-model", *SYSTEMS[1:]]
    assert systems["llmrec"] >= 0.9 > 0.5 > systems["language-model"]
    asked = ["recommend", "--model", folder / "model", "--prompt", items["title"][3], "--k", "5", "--json"]
    found = [row["item_id"] for row in json.loads(llmrec(*asked).stdout)["items"]]
    assert items["item_id"][3] in found
    alone = json.loads(llmrec(*asked, "--ranking", "beam").stdout)["items"]
    assert [row["item_id"] for row in alone] != found


def test_the_metrics_of_histories_stay_as_they_are(run: Path, tiny_run: Path) -> None:
    ours, theirs = (json.loads((folder / "evaluate" / "metrics.json").read_text()) for folder in (run, tiny_run))
    assert ours["protocol"] == theirs["protocol"]
    assert ours["decode"].keys() == theirs["decode"].keys()
    assert ours["systems"]["markov"] == theirs["systems"]["markov"]
    assert not (tiny_run / "evaluate" / "text_queries.json").exists()
    assert "held-out intentions" not in (tiny_run / "model" / "README.md").read_text()


def test_inspect_tells_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--run", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["text_queries"]
    measured = json.loads((run / "evaluate" / "text_queries.json").read_text())["systems"]
    assert told == {name: {key: measured[name]["all"][key] for key in ("recall@10", "ndcg@10")} for name in SYSTEMS}


def explained(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["explain", "--model", str(run / "model"), *words]) == 0
    return capsys.readouterr().out


def test_explain_an_item_and_a_prefix(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = pl.read_parquet(run / "model" / "item_index.parquet")
    item = index.row(5, named=True)
    told = json.loads(explained(run, capsys, "--item", item["item_id"], "--json"))
    assert set(told) == {"item_id", "semantic_id", "title", "says"}
    assert told["semantic_id"].startswith(f"<a_{item['codes'][0]}><b_{item['codes'][1]}>")
    assert told["title"] == item["title"]
    assert item["title"] in explained(run, capsys, "--item", item["item_id"])
    told = json.loads(explained(run, capsys, "--prefix", f"<a_{item['codes'][0]}>", "--json"))
    family = index.filter(pl.col("codes").list.first() == item["codes"][0])["title"].to_list()
    assert told["items"] == len(family)
    assert told["titles"] == family[:5]
    assert told["words"][0] in explained(run, capsys, "--prefix", f"<a_{item['codes'][0]}>")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "--item"),
        (["--item", "a", "--prefix", "<a_1>"], "not allowed with"),
        (["--item", "nobody"], "--item nobody: no such item"),
        (["--prefix", "soap"], "expected the first item tokens"),
        (["--prefix", "<a_999>"], "<a_999> is no item token of level 1; these are <a_0> to <a_31>"),
    ],
)
def test_mistakes_are_one_line(run: Path, fails: Callable[..., str], words: list[str], found: str) -> None:
    assert found in fails("explain", "--model", run / "model", *words)
