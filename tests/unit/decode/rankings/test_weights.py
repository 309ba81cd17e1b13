"""The file of the fusion's weights."""

import json

import numpy as np
import pytest

from llmrec.collaborative.fusion import FusionWeights
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.errors import UserError

WEIGHTS = FusionWeights(
    [1.0, 0.8, 0.5, 2.0], [0.7, 0.0, 1.0, 3.0], -0.25, {"cold_examples": 40, "recall@10_cold": 0.125}, list(FEATURES)
)


def test_scores_of_known_features():
    features = np.array([[1, 0, 0, 0], [0, 2, 0, 1], [1, 1, 1, 1]], float)
    assert WEIGHTS.scores(features, np.array([True, False, True])).tolist() == pytest.approx([0.45, 3.6, 4.45])


def test_the_file_gives_them_back(tmp_path):
    WEIGHTS.save(tmp_path / "fusion.json")
    assert FusionWeights.load(tmp_path / "fusion.json") == WEIGHTS


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["first_code", "later_codes", "dense"]},
        {"features": None},
        {"trained": [1, 2, 3]},
        {"new": [1, 2, 3, None]},
        {"new": "abcd"},
        {"bonus": "much"},
        {"bonus": float("nan")},
        {"trained": [1, 2, 3, float("inf")]},
        {"more": 3},
    ],
    ids=str,
)
def test_other_weights_are_refused_in_one_line(tmp_path, change):
    path = tmp_path / "fusion.json"
    WEIGHTS.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights that llmrec saved: ") as caught:
        FusionWeights.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"features": "x"', "\x00\xff"])
def test_other_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "fusion.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"fusion\.json: not fusion weights that llmrec saved: ") as caught:
        FusionWeights.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"fusion\.json"):
        FusionWeights.load(tmp_path / "fusion.json")
    assert len(FEATURES) == 4
