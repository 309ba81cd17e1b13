"""The loop in the planted world: what supervised learning can't know, the guards, and interruptions."""

import logging

import numpy as np
import pytest

from llmrec.errors import UserError
from llmrec.preference import align as loop
from llmrec.preference.align import _batches, better
from llmrec.preference.config import PreferenceConfig

FAST = {"batch_size": 40, "learning_rate": 1e-3, "patience": 0, "evaluations": 2, "easy": 0.0}
SDPO = {**FAST, "method": "s-dpo", "negatives": 6, "epochs": 6, "beta": 1.0}
GRPO = {**FAST, "method": "grpo", "group": 6, "epochs": 4, "learning_rate": 3e-3}
SHORT = {"epochs": 2, "evaluations": 5}


def test_supervised_learning_repeats_the_shop(aligned, liked):
    _, tops = aligned(PreferenceConfig(**{**SDPO, "epochs": 1, "learning_rate": 1e-12}))
    assert (tops == liked - 1).mean() > 0.9


def test_s_dpo_learns_from_feedback_what_the_log_hides(aligned, liked):
    _, tops = aligned(PreferenceConfig(**SDPO), disliked=True)
    assert (tops == liked).mean() > 0.9


@pytest.mark.parametrize("settings", [{}, {"draw": "samples"}, {"updates": 2, "clip": 0.3}], ids=str)
def test_grpo_learns_from_a_reward_what_the_log_hides(aligned, likes, liked, settings):
    _, tops = aligned(PreferenceConfig(**GRPO, **settings), reward=likes)
    assert (tops == liked).mean() > 0.9


@pytest.mark.parametrize(
    "config",
    [{**SDPO, **SHORT}, {**GRPO, **SHORT, "draw": "samples", "updates": 2, "clip": 0.2}],
    ids=["s-dpo", "grpo"],
)
def test_killed_and_resumed_equals_undisturbed(aligned, supervised, guard, monkeypatch, config):
    config = PreferenceConfig(**config)
    whole, _ = aligned(config, "whole", validation=guard)
    expected = {name: value.clone() for name, value in supervised.model.state_dict().items()}
    step, left = loop._step, [5]

    def killed(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        step(*given)

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        aligned(config, "cut", validation=guard)
    monkeypatch.setattr(loop, "_step", step)
    resumed, _ = aligned(config, "cut", validation=guard)
    for name, value in supervised.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), expected[name].numpy())
    assert [{**line, "seconds": 0} for line in resumed.lines] == [{**line, "seconds": 0} for line in whole.lines]


def test_the_guard_sees_what_is_measured(aligned, guard):
    progress, _ = aligned(PreferenceConfig(**{**GRPO, "epochs": 1}), validation=guard)
    first, last = progress.lines[0], progress.lines[-1]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 0
    assert {"recall@10", "recall@50", "ndcg@10", "coverage@10", "popularity@10", "loss", "reward"} <= last.keys()
    assert first["recall@50"] == 1  # 20 items: each is in a list of 50


def test_a_worse_model_is_not_kept(aligned, guard, caplog):
    guard.cases.targets[:] = guard.cases.targets - 1  # what the log has
    with caplog.at_level(logging.WARNING):
        progress, tops = aligned(PreferenceConfig(**{**SDPO, "learning_rate": 0.3, "epochs": 1}), validation=guard)
    assert progress.best == 0
    assert (tops == guard.cases.targets).mean() > 0.9
    assert "No evaluation was better" in caplog.text


def test_the_rule_of_the_best():
    lines = [{"step": 0, "ndcg@10": 0.3, "recall@50": 0.5}, {"step": 4, "ndcg@10": 0.4, "recall@50": 0.48}]
    assert better(lines, 0, 0.05)
    assert not better(lines, 0, 0.01)
    assert not better([*lines, {"step": 8, "ndcg@10": 0.4, "recall@50": 0.6}], 4, 0.05)


def test_equal_rewards_are_said(aligned, caplog):
    with caplog.at_level(logging.WARNING):
        aligned(PreferenceConfig(**{**GRPO, "epochs": 1}), reward=lambda history, items, target: [2.0] * len(items))
    assert "had equal rewards" in caplog.text


def test_a_reward_that_fails_loses_no_checkpoint(aligned, likes, tmp_path):
    calls = [0]

    def tired(history, items, target):
        calls[0] += 1
        return likes(history, items, target) if calls[0] < 150 else [float("nan")] * len(items)

    config = PreferenceConfig(**{**GRPO, **SHORT})
    with pytest.raises(UserError, match="nan for item"):
        aligned(config, reward=tired)
    assert (tmp_path / "run" / loop.LAST).exists()
    progress, _ = aligned(config, reward=likes)
    assert progress.step == 10


def test_another_configuration_in_the_same_folder(aligned):
    config = {**SDPO, "epochs": 1}
    aligned(PreferenceConfig(**config))
    with pytest.raises(UserError, match="another model, configuration or log"):
        aligned(PreferenceConfig(**{**config, "beta": 2.0}))


def test_each_example_is_learnt_once_per_epoch():
    config = PreferenceConfig("s-dpo", batch_size=3, epochs=2)
    batches = _batches(9, config, 1)
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(9))
    assert [len(batch) for batch in _batches(9, config, 2)] == [6, 6, 6]
    assert [len(batch) for batch in _batches(2, PreferenceConfig("s-dpo", batch_size=3), 1)] == [2]
