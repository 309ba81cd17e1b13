"""Intentions as a stage of a run: what they change, what they don't, and mistakes in naming their source."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl

Program = Callable[..., subprocess.CompletedProcess[str]]
Fails = Callable[..., str]


def test_a_source_switched_on_retrains(llmrec: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    words = ["--run", run_copy, *tiny_flags, "--intentions.source", "reviews"]
    result = llmrec("run", *words)
    assert result.returncode == 0, result.stderr
    for stage in ("data", "embed", "tokenize", "base"):
        assert f"{stage}: unchanged" in result.stderr
    for stage in ("intentions", "train", "model", "evaluate"):
        assert f"{stage}: done in" in result.stderr
    table = pl.read_parquet(run_copy / "intentions" / "intentions.parquet")
    assert table.columns == ["user_id", "item_id", "text", "held_out"]
    assert len(table.filter("held_out"))
    assert len(table.filter(pl.col("user_id").is_not_null()))
    manifest = json.loads((run_copy / "train" / "manifest.json").read_text())
    assert (
        manifest["inputs"]["intentions"] == json.loads((run_copy / "intentions" / "manifest.json").read_text())["key"]
    )
    again = llmrec("run", *words)
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stderr


def test_no_source_no_folder(tiny_run: Path) -> None:
    assert not (tiny_run / "intentions").exists()
    assert "intentions" not in json.loads((tiny_run / "train" / "manifest.json").read_text())["inputs"]


def test_a_file_that_changed_is_read_again(
    llmrec: Program, fails: Fails, run_copy: Path, tiny_flags: list[str]
) -> None:
    item = pl.read_parquet(run_copy / "data" / "items.parquet")["item_id"][0]
    wishes = run_copy.parent / "wishes.csv"
    words = ["run", "--run", run_copy, *tiny_flags, "--intentions.source", "file", "--intentions.path", wishes]
    assert f"--intentions.path: {wishes}: expected a file" in fails(*words)
    wishes.write_text("item_id,words\n")
    assert f"{wishes}: no column 'text'" in fails(*words)
    wishes.write_text("item_id,text\nnobody's,a tent for two\n")
    assert "--intentions.source file tells nothing" in fails(*words)
    wishes.write_text(f"item_id,text\n{item},a tent for two\n")
    result = llmrec(*words, "--evaluate.text_queries", "0")
    assert result.returncode == 0, result.stderr
    assert pl.read_parquet(run_copy / "intentions" / "intentions.parquet")["text"].to_list() == ["a tent for two"]


def test_an_endpoint_nobody_answers_for(fails: Fails, run_copy: Path, tiny_flags: list[str]) -> None:
    words = ["run", "--run", run_copy, *tiny_flags, "--intentions.source", "llm"]
    assert "--intentions.source llm asks" in fails(*words)
    assert "expected an address" in fails(*words, "--intentions.url", "localhost", "--intentions.model", "m")
