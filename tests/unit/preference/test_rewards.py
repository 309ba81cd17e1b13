"""The shipped rewards on groups computed by hand; what a reward does wrong is one line."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from llmrec.collaborative.config import DistillConfig, ExpertsConfig
from llmrec.collaborative.teacher import Teacher
from llmrec.config import Config
from llmrec.errors import UserError
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.examples import training_examples
from llmrec.preference.rewards import (
    ExpertsReward,
    hit,
    list_hit,
    list_ranked_hit,
    list_reward_of,
    ranked_hit,
    rewards_of,
)
from llmrec.quantize.config import RefineConfig


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


ITEMS = 25
SEQUENCES = [np.array([3, 1, 3, 2]), np.array([4]), np.array([9, 8, 7])]
FIRST_CODES = np.random.default_rng(0).integers(0, 4, ITEMS)
TABLE = 2 * np.random.default_rng(1).normal(size=(ITEMS, ITEMS))


@pytest.fixture
def experts(tmp_path: Path) -> ExpertsReward:
    """By the last item; the six best items of each target are kept one by one."""
    config = DistillConfig(top=6)
    scores = lambda users, histories: TABLE[[history[-1] for history in histories]]  # noqa: E731
    return ExpertsReward(Teacher.of_scores(scores, SEQUENCES, FIRST_CODES, config, tmp_path), FIRST_CODES)


def test_experts_reward_by_the_logarithm_of_their_probability(experts):
    """Targets: 1 after 3, 3 again, 2 after 3, 1, 3; 8 after 9; 7 after 9, 8."""
    for target, history in ((0, [3]), (2, [3, 1, 3]), (3, [9]), (4, [9, 8])):
        expected = TABLE[history[-1]].copy()
        expected[history] = -np.inf
        expected = softmax(expected)
        best = np.argsort(-expected)[:6]
        others = np.setdiff1d(np.arange(ITEMS), best)
        for code in range(4):  # the other items of a first code share what is left evenly
            same = others[FIRST_CODES[others] == code]
            expected[same] = expected[same].sum() / max(len(same), 1)
        found = experts.of(target, np.arange(ITEMS))
        np.testing.assert_allclose(np.exp(found), np.maximum(expected, 1e-6), rtol=2e-3, atol=1e-6)
        shuffled = np.random.default_rng(2).permutation(ITEMS)[:9]
        np.testing.assert_array_equal(experts.of(target, shuffled), found[shuffled])


def test_experts_say_nothing_of_an_item_that_is_taken_again(experts):
    assert not experts.of(1, np.arange(ITEMS)).any()


def test_experts_know_which_target_an_example_has(experts):
    examples = training_examples(SEQUENCES)
    assert examples.targets.tolist() == [0, 2, 3, 4], "item 3 is in its history"
    few = examples.sample(2, seed=0)
    judge = experts.judge(few.targets)
    for row, target in enumerate(few.targets):
        np.testing.assert_array_equal(judge(row, np.array([5, 6])), experts.of(int(target), np.array([5, 6])))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "s-dpo"}, r"preference\.reward experts: preference\.method s-dpo has no reward; set it to grpo"),
        ({"method": "grpo", "session": 2}, r"reward experts judges items, but preference\.session 2 rewards lists"),
    ],
)
def test_settings_in_which_experts_have_no_say(settings, said):
    with pytest.raises(UserError, match=said):
        PreferenceConfig(reward="experts", **settings)


def test_experts_are_held_back_more_than_hits():
    assert PreferenceConfig("grpo", reward="experts").kl_weight == 1
    assert PreferenceConfig("grpo").kl_weight == 1e-3
    assert PreferenceConfig("grpo", reward="experts", kl=0.0).kl_weight == 0
    assert not PreferenceConfig("none", reward="experts").by_experts


def test_experts_do_not_reward_codes_that_a_refinement_replaces():
    experts = ExpertsConfig(models=["popularity"], learned=False)
    preference = PreferenceConfig("grpo", reward="experts")
    Config(experts=experts, preference=preference)
    with pytest.raises(
        UserError, match=r"refine\.rounds 1 gives .* preference\.reward experts has teachers for the first"
    ):
        Config(experts=experts, preference=preference, refine=RefineConfig(rounds=1))
