"""What `llmrec inspect` says of a run."""

import json
from pathlib import Path

import pytest
import yaml

from llmrec import pipeline
from llmrec.cli.main import main
from llmrec.config import Config
from llmrec.data.config import DataConfig
from llmrec.rundir import CONFIG, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the stage `data`, split at two points in time."""
    config = Config(data=DataConfig(format="synthetic", synthetic_items=60, synthetic_users=300, split="timestamp"))
    with RunDirectory(tmp_path / "run") as run:
        pipeline.data_stage(config, run)
    return tmp_path / "run"


def inspected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["inspect", *words]) == 0
    return capsys.readouterr().out


def finish(run: Path, *stages: str) -> None:
    """Give the run the manifests of further stages."""
    manifest = (run / "data" / "manifest.json").read_text()
    for stage in stages:
        (run / stage).mkdir()
        (run / stage / "manifest.json").write_text(manifest)


def test_the_cuts_of_a_split_are_dates_and_stay_numbers_in_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cuts = json.loads(inspected(capsys, "--run", str(run), "--json"))["data"]["split"]["cuts"]
    assert all(isinstance(cut, int) for cut in cuts)
    [line] = [line for line in inspected(capsys, "--run", str(run)).splitlines() if line.strip().startswith("cuts")]
    assert line.split(": ", 1)[1].startswith("2023-")
    assert str(cuts[0]) not in line


def test_a_stage_that_the_configuration_no_longer_has_is_left_over(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(run, "experts", "intentions", "base")
    settings = {"experts": {"models": ["transitions"]}, "intentions": {"source": "none"}, "base": {"model": "org/name"}}
    (run / CONFIG).write_text(yaml.safe_dump(settings))
    content = json.loads(inspected(capsys, "--run", str(run), "--json"))
    assert list(content["stages"]) == ["data", "experts"]
    assert content["left_over"] == ["intentions", "base"]
    assert "left over, no longer in the configuration: intentions, base" in inspected(capsys, "--run", str(run))


def test_nothing_is_left_over_in_a_run_as_its_configuration_says(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ["experts", "teacher", "intentions", "base", "train", "refine", "preference"]
    finish(run, *stages)
    settings = {
        "experts": {"models": ["transitions"]},
        "train": {"distill": {"weight": 1.0}},
        "intentions": {"source": "text"},
        "refine": {"rounds": 1},
        "preference": {"method": "s-dpo"},
    }
    for text in (yaml.safe_dump(settings), None):  # without a configuration, nothing can be said
        (run / CONFIG).unlink(missing_ok=True)
        if text is not None:
            (run / CONFIG).write_text(text)
        finished = pipeline.left_over(run)
        assert finished == []


@pytest.mark.parametrize(("method", "left"), [("grpo", []), ("s-dpo", ["teacher"]), ("none", ["teacher"])])
def test_a_teacher_that_only_rewards_is_left_over_without_its_alignment(
    run: Path, method: str, left: list[str]
) -> None:
    finish(run, "teacher")
    settings = {"train": {"distill": {"weight": 0.0}}, "preference": {"method": method, "reward": "experts"}}
    (run / CONFIG).write_text(yaml.safe_dump(settings))
    assert pipeline.left_over(run) == left
