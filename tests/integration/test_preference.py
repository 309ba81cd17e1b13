"""Preference alignment as a user runs it: killed at any moment it ends as undisturbed; mistakes lose nothing."""

import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from llmrec.collaborative.teacher import Teacher

Program = Callable[..., subprocess.CompletedProcess[str]]
FAST = ["--preference.examples", "96", "--preference.batch_size", "16", "--preference.evaluations", "3"]
FAST += ["--preference.learning_rate", "1e-3", "--preference.patience", "0", "--preference.validation_users", "40"]
METHODS = {
    "s-dpo": ["--preference.method", "s-dpo", "--preference.negatives", "3", *FAST],
    "grpo": ["--preference.method", "grpo", "--preference.group", "16", "--preference.draw", "samples", *FAST],
}


def lines_of(folder: Path) -> list[dict[str, float]]:
    """The evaluations that the log of an alignment has, without their seconds."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [{**json.loads(line), "seconds": 0.0} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_undisturbed(
    method: str, tiny_run: Path, tiny_flags: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """`kill -9` before the first evaluation, after it, and after the second."""
    flags = [*tiny_flags, *METHODS[method]]

    def start(run: str) -> subprocess.Popen[bytes]:
        if not (tmp_path / run).exists():
            shutil.copytree(tiny_run, tmp_path / run)
        words = [sys.executable, "-m", "llmrec", "train", "--run", str(tmp_path / run), *flags]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(run: str) -> str:
        process = start(run)
        _, log = process.communicate()
        assert process.returncode == 0, log.decode()
        return log.decode()

    finish("undisturbed")
    draw, partial = random.Random(3), tmp_path / "killed" / ".preference.partial"
    for evaluations in (0, 1, 2):
        process = start("killed")
        while not (partial / "start.safetensors").exists() or len(lines_of(partial)) < evaluations:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert not (tmp_path / "killed" / "preference").exists()
        assert json.loads((tmp_path / "killed" / "model" / "llmrec.json").read_text())["preference"] == "none"
    log = finish("killed")
    assert "Resuming from step" in log
    runs = [tmp_path / run for run in ("undisturbed", "killed")]
    one, two = (lines_of(run / "preference") for run in runs)
    assert one == two
    assert one[-1]["kl"] > 0.01
    one, two = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert one == two
    one, two = (sorted(path.name for path in (run / "preference").rglob("*")) for run in runs)
    assert one == two


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "expected a file, found nothing there"),
        ("user_id,item_id,liked\n", "no rows"),
        ("user_id,item_id\nu,i\n", "no column 'liked'"),
        ("user_id,item_id,liked\n{user},nope,1\n", "the catalogue has no item 'nope'"),
        ("user_id,item_id,liked\n{user},{item},nan\n", "row 1 has liked 'nan', expected 0 or 1"),
        ("user_id,item_id,liked\n{user},,1\n", "row 1 has no item_id"),
        ("user_id,item_id,liked,position\n{user},{item},1,first\n", "row 1 has position 'first', expected a number"),
    ],
)
def test_a_wrong_feedback_file_is_one_line_and_the_run_stays(
    text: str | None, said: str, fails: Callable[..., str], run_copy: Path, tiny_flags: list[str], tmp_path: Path
) -> None:
    file, log = tmp_path / "feedback.csv", pl.read_parquet(run_copy / "data" / "interactions.parquet")
    if text is not None:
        file.write_text(text.format(user=log["user_id"][0], item=log["item_id"][0]))
    before = {path: path.stat().st_mtime_ns for path in (run_copy / "model").rglob("*") if path.is_file()}
    line = fails("train", "--run", run_copy, *tiny_flags, *METHODS["s-dpo"], "--preference.feedback", file)
    assert line.startswith("llmrec: --preference.feedback")
    assert said in line
    assert {path: path.stat().st_mtime_ns for path in (run_copy / "model").rglob("*") if path.is_file()} == before
    assert not (run_copy / "preference").exists()


def test_experts_reward_the_models_items(llmrec: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    """The stage `teacher` is made for the reward alone, and found again."""
    flags = [*tiny_flags, *METHODS["grpo"], "--preference.reward", "experts"]
    flags += ["--experts.models", "[decayed-markov, popularity]", "--experts.learned", "false"]
    result = llmrec("train", "--run", run_copy, *flags)
    assert result.returncode == 0, result.stderr
    assert len(Teacher.load(run_copy / "teacher"))
    assert "train: unchanged" in result.stderr, "the teacher does not teach the training"
    first, *_, last = lines_of(run_copy / "preference")
    assert first["kl"] == 0 < last["kl"]
    assert -math.log(1e6) <= last["reward"] < 0, "a logarithm"
    again = llmrec("train", "--run", run_copy, *flags)
    assert "preference: unchanged" in again.stderr
    assert json.loads(llmrec("inspect", "--run", run_copy, "--json").stdout).get("left_over", []) == []


def test_experts_that_reward_need_experts(fails: Callable[..., str], run_copy: Path, tiny_flags: list[str]) -> None:
    flags = [*tiny_flags, *METHODS["grpo"], "--preference.reward", "experts", "--experts.models", "[]"]
    line = fails("train", "--run", run_copy, *flags, "--experts.learned", "false")
    assert "--preference.reward: no expert can teach; name one with --experts.models" in line
