"""`llmrec discover` on a finished run."""

import json
from pathlib import Path

import polars as pl
import pytest

from llmrec.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def index(tiny_run: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_run / "model" / "item_index.parquet")


def discover(tiny_run: Path, *words: str) -> int:
    return main(["discover", "--model", str(tiny_run / "model"), *words])


def test_a_person_a_segment_and_a_request(tiny_run: Path, index: pl.DataFrame, tmp_path: Path, capsys: Capture) -> None:
    ids = index["item_id"].to_list()
    levels = json.loads((tiny_run / "model" / "quantizer" / "quantizer.json").read_text())["config"]["levels"]
    used = {tuple(codes[:levels]) for codes in index["codes"].to_list()}
    file = tmp_path / "segment.txt"
    file.write_text(f"{ids[0]} {ids[1]}\n{ids[2]}, {ids[3]},{ids[4]}\n")
    scores = set()
    for words in (["--history", *ids[:2]], ["--histories", str(file)], ["--prompt", "a warm sleeping bag"]):
        capsys.readouterr()
        assert discover(tiny_run, *words, "--k", "4", "--beams", "8", "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) == {"discoveries", "seconds"}
        found = answer["discoveries"]
        assert [each["rank"] for each in found] == [1, 2, 3, 4]
        assert all(len(each["codes"]) == levels for each in found)
        assert not {tuple(each["codes"]) for each in found} & used
        assert all({near["item_id"] for near in each["neighbours"]} <= set(ids) for each in found)
        scores.add(tuple(each["score"] for each in found))
    assert len(scores) == 3, "each asks for something else"


def test_lines_for_people(tiny_run: Path, index: pl.DataFrame, capsys: Capture) -> None:
    words = ["--history", index["item_id"][0], "--k", "2", "--beams", "5", "--neighbours", "3"]
    capsys.readouterr()
    assert discover(tiny_run, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[2].isdigit()] == ["1", "2"]
    assert sum(line.split()[0] == "near" for line in lines) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty, expected one person's item ids per line"),
        ("{0} {1}\n\n{0}\n", "line 2: no item ids"),
        ("{0}\n{1} nope\n", "--histories, line 2 nope: no such item"),
        ('["{0}"]\n["{0}", "no pe"]\n', "--histories, line 2 no pe: no such item"),
        ('["{0}"]\n["{0}\n', "malformed JSON; expected a list of ids"),
    ],
)
def test_a_faulty_segment_names_the_line(
    tiny_run: Path, index: pl.DataFrame, tmp_path: Path, capsys: Capture, text: str, words: str
) -> None:
    file = tmp_path / "segment.txt"
    file.write_text(text.format(*index["item_id"]))
    assert discover(tiny_run, "--histories", str(file)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("llmrec: --histories")
    assert words in last


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to go by"),
        (["--prompt", "a mug", "--beams", "0"], "--beams 0: expected at least 1."),
        (["--histories", "no/such/file"], "can't be read (no/such/file: No such file or directory)"),
        (["--history", "a", "--histories", "b"], "not allowed with argument"),
    ],
)
def test_faulty_flags_are_one_line(tiny_run: Path, capsys: Capture, flags: list[str], words: str) -> None:
    assert discover(tiny_run, *flags) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
