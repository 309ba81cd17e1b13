"""Tokenizer and language model trained in turns, as a user runs it."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.quantize.tokenizer import ItemTokenizer

Program = Callable[..., subprocess.CompletedProcess[str]]

FLAGS = ["--refine.rounds", "2", "--refine.epochs", "1", "--refine.tokenizer_epochs", "3"]
FLAGS += ["--refine.sequence_item", "1", "--refine.preference_semantic", "1", "--refine.learning_rate", "3e-3"]


def codes(folder: Path) -> np.ndarray:
    return ItemTokenizer.load(folder).codes


def test_a_run_with_two_rounds(llmrec: Program, run_copy: Path, tiny_flags: list[str], tmp_path: Path) -> None:
    result = llmrec("run", "--run", run_copy, *tiny_flags, *FLAGS)
    assert result.returncode == 0, result.stderr
    for stage in ("data", "embed", "tokenize", "base", "train"):
        assert f"{stage}: unchanged" in result.stderr
    made = [run_copy / "tokenize", *(run_copy / "refine" / f"tokenize-{number}" for number in (1, 2))]
    first, second, third = map(codes, made)
    assert (first != second).any()
    assert (second != third).any()
    np.testing.assert_array_equal(codes(run_copy / "model" / "quantizer"), third)
    assert json.loads((run_copy / "refine" / "manifest.json").read_text())["config"]["refine"]["rounds"] == 2
    again = llmrec("run", "--run", run_copy, *tiny_flags, *FLAGS)
    assert again.returncode == 0, again.stderr
    assert all(f"{stage}: unchanged" in again.stderr for stage in ("refine", "model", "evaluate"))

    old = pl.read_parquet(run_copy / "model" / "item_index.parquet").row(0, named=True)
    fields = {name.removeprefix("fields."): [text] for name, text in old.items() if name.startswith("fields.")}
    table = tmp_path / "new.csv"
    pl.DataFrame({"item_id": ["NEW"], "title": [old["title"]], **fields}).write_csv(table)
    assert llmrec("add-items", "--model", run_copy / "model", "--items", table).returncode == 0
    after = ItemTokenizer.load(run_copy / "model" / "quantizer")
    np.testing.assert_array_equal(after.codes[:-1], third)
    assert after.codes[-1, 0] == third[0, 0]  # its text is that of the first item
    asked = llmrec("recommend", "--model", run_copy / "model", "--history", old["item_id"], "--allow", "NEW", "--json")
    assert [item["item_id"] for item in json.loads(asked.stdout)["items"]] == ["NEW"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokenize.method", "pq"], "--tokenize.method pq"),
        (["--experts.models", "[popularity]", "--train.distill.weight", "0.5"], "--train.distill.weight 0.5"),
    ],
)
def test_what_cannot_be_refined_is_one_line(
    flags: list[str], said: str, fails: Callable[..., str], run_copy: Path, tiny_flags: list[str]
) -> None:
    line = fails("run", "--run", run_copy, *tiny_flags, *FLAGS, *flags)
    assert line.startswith("llmrec: --refine.rounds 2")
    assert said in line
    assert not (run_copy / "refine").exists()


def test_a_bundle_keeps_its_semantic_ids(
    fails: Callable[..., str], tiny_run: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    line = fails("run", "--run", tmp_path / "new", *tiny_flags, *FLAGS, "--base.model", tiny_run / "model")
    assert line.startswith("llmrec: --refine.rounds 2")
    assert "whose semantic IDs are kept" in line


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(
    tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """`kill -9` while the first tokenizer is refined, in the first training, and in the second round."""

    def start(run: str) -> subprocess.Popen[bytes]:
        if not (tmp_path / run).exists():
            shutil.copytree(tiny_run, tmp_path / run)
        words = [sys.executable, "-m", "llmrec", "train", "--run", str(tmp_path / run), *tiny_flags, *FLAGS]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(run: str) -> None:
        process = start(run)
        _, log = process.communicate()
        assert process.returncode == 0, log.decode()

    finish("undisturbed")
    draw, partial = random.Random(4), tmp_path / "killed" / ".refine.partial"
    for there in ("", "tokenize-1", "round-1/log.jsonl", "bundle-1", "round-2/log.jsonl"):
        process = start("killed")
        while not (partial / there).exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert not (tmp_path / "killed" / "refine").exists()
    finish("killed")
    one, two = (tmp_path / run for run in ("undisturbed", "killed"))
    for name in ("refine/tokenize-2/quantizer.safetensors", "model/model.safetensors", "model/dense.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    np.testing.assert_array_equal(codes(one / "model" / "quantizer"), codes(two / "model" / "quantizer"))
    names = [sorted(path.relative_to(run).as_posix() for path in (run / "refine").rglob("*")) for run in (one, two)]
    assert names[0] == names[1]
