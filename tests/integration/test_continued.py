"""`--base.model BUNDLE`: training goes on from a bundle; more epochs in the same run say that they start again."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from safetensors.numpy import load_file

Program = Callable[..., subprocess.CompletedProcess[str]]


def losses(run: Path) -> list[float]:
    """The validation losses of a training, in order."""
    lines = map(json.loads, (run / "train" / "log.jsonl").read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def test_training_goes_on_from_a_bundle(llmrec: Program, tiny_run: Path, tiny_flags: list[str], tmp_path: Path) -> None:
    run, still = tmp_path / "run", ["--train.learning_rate", "1e-12", "--train.weight_decay", "0"]
    result = llmrec("train", "--run", run, *tiny_flags, "--base.model", tiny_run / "model", *still)
    assert result.returncode == 0, result.stderr
    codes = [pl.read_parquet(each / "tokenize" / "item_codes.parquet") for each in (run, tiny_run)]
    assert codes[0].equals(codes[1])
    vectors = [load_file(each / "embed" / "embeddings.safetensors")["embeddings"] for each in (run, tiny_run)]
    assert (vectors[0] == vectors[1]).all()
    # With steps of almost no length, the loss is that of the bundle from the first evaluation to the last.
    assert losses(run) == pytest.approx([losses(tiny_run)[-1]] * 2, abs=1e-5)
    assert losses(tiny_run)[0] > losses(tiny_run)[-1] + 0.05


def test_more_epochs_start_again_and_say_how_to_go_on(llmrec: Program, run_copy: Path, tiny_flags: list[str]) -> None:
    log = llmrec("train", "--run", run_copy, *tiny_flags, "--train.epochs", "2").stderr
    words = "train: started again, for --train.epochs 2 (was 1); to train the model further instead"
    assert f"{words}, use --base.model {run_copy / 'model'} with another --run" in log
