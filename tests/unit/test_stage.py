"""The peak memory that a stage reports is its own."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.collaborative.config import DistillConfig
from llmrec.stage import Stage, peak_memory

TAUGHT = asdict(DistillConfig(weight=0.5))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can count anew")
def test_the_peak_memory_of_a_stage_is_its_own(tmp_path: Path) -> None:
    size = 300 * 2**20
    peaks = []

    def large(folder: Path) -> None:
        np.ones(size, np.uint8)

    for make in (large, lambda folder: None):
        assert Stage("one", {}, make).run(tmp_path) >= 0
        peaks.append(peak_memory())
    assert peaks[0] >= peaks[1] + 0.8 * size


def test_a_stage_that_is_made_again_says_which_settings_differ() -> None:
    def stage(epochs: int, **later: object) -> Stage:
        settings = {"train": {"epochs": epochs, "lora": {"rank": 16, "merge": True}, **later}, "seed": 1}
        return Stage("train", settings, lambda folder: None, instead="to go on, do that")

    found = {"config": {"train": {"epochs": 12, "lora": {"rank": 8, "merge": True}}, "seed": 2}}
    changed = "--train.epochs 14 (was 12), --train.lora.rank 16 (was 8)"
    assert stage(14).again(found) == f" again, for {changed}; to go on, do that"
    changed = "--train.lora.rank 16 (was 8), --train.softmax level (was vocabulary)"
    assert stage(12, softmax="level").again(found) == f" again, for {changed}; to go on, do that"
    assert stage(14).again(None) == ""
    assert stage(12).again({"config": {"train": {"epochs": 12, "lora_rank": 16, "merge": True}}}) == ""


@pytest.mark.parametrize(
    ("name", "own", "old", "said"),
    [
        ("data", {"user_core": 1}, {"user_core": 4}, "--data.user_core 1 (was 4)"),
        ("data", {"cold": {"share": 0.2}}, {"cold": {"share": 0.05}}, "--data.cold.share 0.2 (was 0.05)"),
        ("tokenize", {"codes": 32, "without": 1}, {"codes": 64}, "--tokenize.codes 32 (was 64)"),
        ("train", {"train": {}}, {"train": {"distill": TAUGHT}}, "--train.distill.weight 0.0 (was 0.5)"),
        ("teacher", {"distill": {"top": 10}}, {"distill": {"top": 100}}, "--train.distill.top 10 (was 100)"),
    ],
)
def test_the_settings_are_named_by_their_flags(name: str, own: dict[str, Any], old: dict[str, Any], said: str) -> None:
    assert Stage(name, own, lambda folder: None).again({"config": old}) == f" again, for {said}"
