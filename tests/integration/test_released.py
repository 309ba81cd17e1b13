"""A run directory and bundles that a released version wrote still load, and answer what that version answered."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmrec import Recommender

RELEASED = Path(__file__).parents[1] / "data" / "released"
ANSWERS = json.loads((RELEASED / "answers.json").read_text())


@pytest.fixture(scope="module")
def whole() -> Recommender:
    """The bundle of the run: whole weights, a dense head, a calibrated fusion."""
    return Recommender.from_pretrained(RELEASED / "run" / "model")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """The adapter bundle, its base named as it lies here."""
    folder = Path(shutil.copytree(RELEASED / "adapter", tmp_path_factory.mktemp("released") / "adapter"))
    for name in ("llmrec.json", "adapter_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"BASE"', json.dumps(str(RELEASED / "base"))))
    return Recommender.from_pretrained(folder)


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_those_of_the_released_version(name: str, whole: Recommender, adapter: Recommender) -> None:
    ranking, expected = name.split("/")[0], ANSWERS[name]
    recommender = adapter if ranking == "adapter" else whole
    recommender.decode_config = replace(
        recommender.decode_config,
        ranking="auto" if ranking in ("adapter", "fusion") else ranking,
        dtype="float32",
    )
    found = recommender.recommend(**expected["request"])
    assert [item.item_id for item in found] == [item_id for item_id, _ in expected["items"]]
    # Another processor sums in another order: float32 rounding, not another model.
    assert [item.score for item in found] == pytest.approx([score for _, score in expected["items"]], abs=1e-3)


def test_a_released_run_is_inspected(llmrec: Callable[..., object], tmp_path: Path) -> None:
    run = Path(shutil.copytree(RELEASED / "run", tmp_path / "run"))
    result = llmrec("inspect", "--run", run)
    assert result.returncode == 0, result.stderr
    assert "60" in result.stdout


def test_a_released_run_goes_on(llmrec: Callable[..., object], tmp_path: Path) -> None:
    """Its configuration is understood. The data is read anew, for times have microseconds now."""
    run = Path(shutil.copytree(RELEASED / "run", tmp_path / "run"))
    result = llmrec("tokenize", "--config", run / "config.yaml", "--run", run)
    assert result.returncode == 0, result.stderr
    assert "data: done" in result.stderr
    assert "tokenize: done" in result.stderr
