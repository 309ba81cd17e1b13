"""`llmrec export-features`: files for another ranker, and their worth, on a run whose stages stand."""

import json
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli.main import main


def test_files_for_another_ranker(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features"
    assert main(["export-features", "--run", str(run_copy), "--out", str(out), "--rows", "500", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    header = json.loads((out / "features.json").read_text())
    items, users = pl.read_parquet(out / "items.parquet"), pl.read_parquet(out / "users.parquet")
    assert (told["items"], told["users"]) == (len(items), len(users))
    assert items["item_id"].to_list() == pl.read_parquet(run_copy / "data" / "items.parquet")["item_id"].to_list()
    assert header["prefix"]["parts"] == [32, 500, 500]
    for frame in (items, users):
        for kind in ("unigram", "prefix"):
            rows = frame[kind].list.explode()
            assert frame[kind].list.len().unique().to_list() == [3]
            assert 0 <= rows.min() <= rows.max() < header[kind]["rows"]


def test_measured(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-features", "--run", str(run_copy), "--measure"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["features", "rows"]
    assert [row.split()[0] for row in rows] == [
        "item-id",
        "hashed-id",
        "unigram",
        "prefix",
        "prefix+item-id",
        "user-tokens",
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "give --out DIR to write the features, --measure to compare them"),
        (["--measure", "--rows", "0"], "--rows 0: expected at least 1"),
        (["--out", "{run}"], "exists already; name a new folder"),
    ],
)
def test_mistakes(run_copy: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word.format(run=run_copy) for word in words]
    assert main(["export-features", "--run", str(run_copy), *given]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_run_without_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-features", "--run", str(tmp_path), "--measure"]) == 2
    assert "no tokenized items there" in capsys.readouterr().err
