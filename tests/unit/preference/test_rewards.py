"""The shipped rewards on groups computed by hand; what a reward does wrong is one line."""

import math

import numpy as np
import polars as pl
import pytest

from llmrec.collaborative.config import ExpertsConfig
from llmrec.collaborative.experts import Experts
from llmrec.collaborative.fused import FusedExperts
from llmrec.data import Catalog, EvalExamples
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.rewards import (
    ExpertsReward,
    hit,
    list_hit,
    list_ranked_hit,
    list_reward_of,
    ranked_hit,
    rewards_of,
)


def test_hits():
    assert hit(["z"], ["a", "b", "c"], "b") == [0, 1, 0]


def test_ranked_hits():
    total = 1 + 1 / math.log2(3) + 1 / 2
    assert ranked_hit(["z"], ["a", "b", "c"], "b") == pytest.approx([-1 / total, 1, -1 / (2 * total)])
    assert ranked_hit(["z"], ["a", "b", "c"], "d") == [0, 0, 0]


def test_lists_with_a_hit():
    assert [list_hit(["z"], ["a", "b", "c"], target) for target in "bd"] == [1, 0]
    assert [list_ranked_hit(["z"], ["a", "b", "c"], target) for target in "abd"] == pytest.approx(
        [1, 1 / math.log2(3), 0]
    )
    assert list_reward_of(list_ranked_hit, ["z"], ["a", "b", "c"], "c") == pytest.approx(1 / 2)


def broken(history, items, target):
    raise ZeroDivisionError("division\nby zero")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (broken, ["reward broken", "target 't'", "ZeroDivisionError: division by zero"]),
        (lambda history, items, target: [1.0], ["shape (1,)", "expected one number per item, (2,)"]),
        (lambda history, items, target: [1.0, float("nan")], ["nan for item 'b'"]),
        (lambda history, items, target: [float("inf"), 0], ["inf for item 'a'"]),
        (lambda history, items, target: ["good", 0], ["raised ValueError"]),
        (lambda history, items, target: None, ["shape ()"]),
    ],
)
def test_what_a_reward_does_wrong_is_one_line(reward, said):
    with pytest.raises(UserError) as error:
        rewards_of(reward, ["h"], ["a", "b"], "t")
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


def test_a_reward_sees_ids():
    seen = []
    rewards_of(lambda *given: seen.append(given) or [0, 0], ["h"], ["a", "b"], "t")
    assert seen == [(["h"], ["a", "b"], "t")]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (broken, "reward broken of a list of 2 items, target 't': it raised ZeroDivisionError: division by zero"),
        (lambda history, items, target: [1.0, 0.0], "shape (2,), expected one finite number for the list"),
        (lambda history, items, target: float("nan"), "nan, expected one finite number for the list"),
        (lambda history, items, target: None, "nan, expected one finite number for the list"),
        (lambda history, items, target: "good", "raised ValueError"),
    ],
)
def test_what_the_reward_of_a_list_does_wrong_is_one_line(reward, said):
    with pytest.raises(UserError) as error:
        list_reward_of(reward, ["h"], ["a", "b"], "t")
    assert "\n" not in str(error.value)
    assert said in str(error.value)


def test_experts_reward_an_item_by_its_probability():
    """Customers go from item i to item i + 1, most often to b: after a, the experts give b the best reward."""
    log = [np.array([i, (i + 1) % 6]) for i in range(6) for _ in range(8)] + [np.array([0, 1])] * 20
    examples = EvalExamples(np.arange(30), [np.array([i % 6]) for i in range(30)], np.arange(1, 31) % 6)
    config = ExpertsConfig(models=["decayed-markov", "popularity"])
    fused = FusedExperts(config, Experts(config, None, examples), examples).fit(log, 6)
    catalog = Catalog.from_frame(pl.DataFrame({"item_id": list("abcdef"), "title": list("abcdef")}))
    rewards = ExpertsReward(fused, catalog)(["f", "a"], ["c", "b", "e"], None)
    shares = np.exp(fused.scores([np.array([5, 0])])[0].astype(np.float64))
    assert rewards == pytest.approx(shares[[2, 1, 4]] / shares.sum())
    assert max(rewards) == rewards[1]


@pytest.mark.parametrize("other", [{"method": "s-dpo"}, {"method": "grpo", "session": 3}], ids=str)
def test_experts_reward_single_items_of_groups_only(other):
    with pytest.raises(UserError, match="experts scores the items of method grpo one by one"):
        PreferenceConfig(**other, reward="experts")
