"""The shipped rewards on groups computed by hand; what a reward does wrong is one line."""

import math

import pytest

from llmrec.errors import UserError
from llmrec.preference.rewards import hit, list_hit, list_ranked_hit, list_reward_of, ranked_hit, rewards_of


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
