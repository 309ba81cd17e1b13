"""The teacher's file: what a row holds, that it can be stopped and continued, and files that are not one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from llmrec.collaborative import teacher as module
from llmrec.collaborative.config import DistillConfig, ExpertsConfig
from llmrec.collaborative.experts import Experts
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import FusionWeights
from llmrec.collaborative.held_out import HeldOutExperts
from llmrec.collaborative.teacher import Teacher
from llmrec.config import Config
from llmrec.data.sequences import EvalExamples, first_target
from llmrec.errors import UserError
from llmrec.train.config import TrainConfig

ITEMS = 25
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.permutation(ITEMS)[: user % 6] for user in range(30)]
FIRST_CODES = RNG.integers(0, 4, ITEMS)
TABLE = 2 * RNG.normal(size=(ITEMS, ITEMS))
CONFIG = DistillConfig(weight=0.5, top=6, temperature=0.7)


def scores(users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
    """By the last item."""
    return TABLE[[history[-1] for history in histories]]


def made(folder: Path, scores=scores, config: DistillConfig = CONFIG) -> Teacher:
    return Teacher.of_scores(scores, SEQUENCES, FIRST_CODES, config, folder)


def test_rows_are_the_best_items_and_the_rest_of_each_first_code(tmp_path: Path) -> None:
    teacher, number = made(tmp_path), 0
    assert len(teacher) == first_target(SEQUENCES)[-1]
    assert json.loads((tmp_path / "teacher.json").read_text())["bytes_per_target"] == 6 * 6 + 2 * 4
    for sequence in SEQUENCES:
        for place in range(1, len(sequence)):
            expected = TABLE[sequence[place - 1]] / 0.7
            expected[sequence[:place]] = -np.inf
            expected = softmax(expected)
            row, number = teacher.rows[number], number + 1
            assert set(row["items"]) == set(np.argsort(-expected)[:6])
            np.testing.assert_allclose(row["shares"], expected[row["items"]], rtol=1e-3)
            expected[row["items"]] = 0
            np.testing.assert_allclose(row["rest"], np.bincount(FIRST_CODES, expected), rtol=1e-3, atol=1e-6)
    assert number == len(teacher)


def test_killed_and_continued_is_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "FLUSHED", 2)
    whole, asked = made(tmp_path / "one"), []

    def until(batches: int):
        def given(users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
            asked.append(len(users))
            if len(asked) == batches:
                raise RuntimeError("power cut")
            return scores(users, histories)

        return given

    with pytest.raises(RuntimeError, match="power cut"):
        made(tmp_path / "two", until(6))
    with pytest.raises(UserError, match="hold no teacher"):
        Teacher.load(tmp_path / "two")
    continued = made(tmp_path / "two", until(-1))
    assert asked[6] == 4
    assert len(asked) == 6 + -(-len(whole) // 4) - 4, "four batches were on the disk"
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"teacher.npy", "teacher.json"}
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    np.testing.assert_array_equal(continued.rows, whole.rows)


def test_users_without_events_do_not_count(tmp_path: Path) -> None:
    """A training does not list the users whose items are all cold; the teacher's stage does."""
    made(tmp_path).check([sequence for sequence in SEQUENCES if len(sequence)], FIRST_CODES)


def test_another_log_or_other_codes_are_refused(tmp_path: Path) -> None:
    teacher = made(tmp_path)
    teacher.check(SEQUENCES, FIRST_CODES)
    for sequences, codes in ((SEQUENCES[2:], FIRST_CODES), (SEQUENCES, FIRST_CODES[::-1])):
        with pytest.raises(UserError, match="made for another log, catalogue or item tokenizer"):
            teacher.check(sequences, codes)


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_files_are_one_line(tmp_path: Path, damage: str) -> None:
    made(tmp_path)
    path = tmp_path / "teacher.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="hold no teacher that llmrec saved") as error:
        Teacher.load(tmp_path)
    assert "\n" not in str(error.value)


def test_experts_teach_held_out_or_as_they_are(tmp_path: Path) -> None:
    config = ExpertsConfig(models=["decayed-markov", "popularity"])
    nobody = EvalExamples(np.empty(0, np.int32), [], np.empty(0, np.int32))
    fused = FusedExperts(config, Experts(config, None, nobody).fit(SEQUENCES, ITEMS))
    fused.weights = FusionWeights([1.0, 0.5], [1.0, 0.5], 0.0, {}, fused.names)
    users = np.repeat(np.arange(len(SEQUENCES)), [max(len(sequence) - 1, 0) for sequence in SEQUENCES])
    histories = [sequence[:place] for sequence in SEQUENCES for place in range(1, len(sequence))]
    for held_out in (True, False):
        own = DistillConfig(weight=1.0, top=ITEMS, held_out=held_out)
        rows = Teacher.make(fused, SEQUENCES, FIRST_CODES, own, tmp_path / str(held_out)).rows
        scores = (
            HeldOutExperts(fused, SEQUENCES).scores(users, histories)
            if held_out
            else fused.fused(fused.values(histories))
        )
        for row, history, expected in zip(rows, histories, scores, strict=True):
            expected = expected.copy()
            expected[history] = -np.inf
            np.testing.assert_allclose(row["shares"], softmax(expected)[row["items"]], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("experts", "models", "said"),
    [
        ([], [], r"train\.distill\.weight 0\.5, preference\.reward: no expert can teach"),
        ([], ["bsarec"], r"train\.distill\.weight 0\.5, preference\.reward: no expert can teach"),
        (["text"], ["popularity"], r"train\.distill\.experts text: not among experts\.models"),
    ],
)
def test_without_experts_nobody_teaches(experts: list, models: list, said: str) -> None:
    distill = DistillConfig(weight=0.5, experts=experts)
    with pytest.raises(UserError, match=said) as error:
        Config(experts=ExpertsConfig(models=models), train=TrainConfig(distill=distill))
    assert "\n" not in error.value.with_flags


def test_who_teaches() -> None:
    models = ["text", "bsarec", "decayed-markov"]
    assert CONFIG.taught_by(models) == ["text", "decayed-markov"], "a Transformer teaches only if it is named"
    assert DistillConfig(experts=["bsarec", "text"]).taught_by(models) == ["text", "bsarec"]


@pytest.mark.parametrize(
    ("field", "value"), [("weight", -0.1), ("weight", 1.5), ("temperature", 0.0), ("top", 0), ("folds", 1)]
)
def test_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"train\.distill\.{field} {value}"):
        DistillConfig(**{field: value})


def test_a_training_without_a_teacher_keeps_its_key() -> None:
    assert "distill" not in TrainConfig().cache_key()
    assert TrainConfig(distill=CONFIG).cache_key()["distill"]["temperature"] == 0.7


def test_weights_of_some_experts_are_learnt_again() -> None:
    """Text alone, after a fit with popularity beside it."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    config = ExpertsConfig(models=["popularity", "text"], candidates=ITEMS)
    cases = EvalExamples(np.arange(60), [rng.integers(0, ITEMS, 1) for _ in range(60)], rng.integers(0, ITEMS, 60))
    fused = FusedExperts(config, Experts(config, vectors, cases), cases).fit(SEQUENCES, ITEMS)
    alone = fused.of_experts(["text"], cases)
    other = replace(config, models=["text"])
    expected = FusedExperts(other, Experts(other, vectors, cases), cases).fit(SEQUENCES, ITEMS)
    assert alone.names == ["text"]
    assert alone.weights == expected.weights
    np.testing.assert_array_equal(alone.scores(SEQUENCES[2:4]), expected.scores(SEQUENCES[2:4]))
    assert fused.names == ["popularity", "text"]
