"""EASE: the closed form against the constrained least squares that it solves."""

import numpy as np
import pytest

from llmrec.collaborative import counting as ease
from llmrec.collaborative.counting import EASE
from llmrec.errors import UserError


def test_weights_solve_each_column_s_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    users = [rng.permutation(8)[: rng.integers(2, 7)] for _ in range(40)]
    found = EASE(regularization=3.0).fit(users, 8).weights
    x = np.zeros((40, 8))
    for row, items in enumerate(users):
        x[row, items] = 1
    for column in range(8):
        others = np.arange(8) != column
        design = x[:, others]
        expected = np.linalg.solve(design.T @ design + 3.0 * np.eye(7), design.T @ x[:, column])
        np.testing.assert_allclose(found[others, column], expected, atol=1e-5)
        assert found[column, column] == 0


def test_the_history_is_weighed_by_recency() -> None:
    system = EASE(recency=0.5).fit([np.array([0, 1, 2]), np.array([1, 2])], 4)
    (scores,) = system.scores([np.array([0, 1])])
    np.testing.assert_allclose(scores, 0.5 * system.weights[0] + system.weights[1], atol=1e-6)


def test_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 3)
    with pytest.raises(UserError, match="4 items, expected at most 3"):
        EASE().fit([np.array([0, 1])], 4)
