"""The loop in the planted world: what supervised learning can't know, the guards, and interruptions."""

import pytest

from llmrec.preference.config import PreferenceConfig

FAST = {"batch_size": 40, "learning_rate": 1e-3, "patience": 0, "evaluations": 2, "easy": 0.0}
SDPO = {**FAST, "method": "s-dpo", "negatives": 6, "epochs": 6, "beta": 1.0}
GRPO = {**FAST, "method": "grpo", "group": 6, "epochs": 4, "learning_rate": 3e-3}


def likes(shop):
    """The hidden taste as a reward: 1 for the liked item."""
    from conftest import liked_after

    def reward(history, items, target):
        good = liked_after(shop.catalog.index[history[-1]])
        return [float(shop.catalog.index[item] == good) for item in items]

    return reward


def test_supervised_learning_repeats_the_shop(aligned, liked):
    _, tops = aligned(PreferenceConfig(**{**SDPO, "learning_rate": 1e-12}))
    assert (tops == liked - 1).mean() > 0.9


def test_s_dpo_learns_from_feedback_what_the_log_hides(aligned, liked):
    _, tops = aligned(PreferenceConfig(**SDPO), disliked=True)
    assert (tops == liked).mean() > 0.9


@pytest.mark.parametrize("settings", [{}, {"draw": "samples"}, {"updates": 2, "clip": 0.3}], ids=str)
def test_grpo_learns_from_a_reward_what_the_log_hides(aligned, supervised, liked, settings):
    _, tops = aligned(PreferenceConfig(**GRPO, **settings), reward=likes(supervised))
    assert (tops == liked).mean() > 0.9
