"""The loop in the planted world: what supervised learning can't know, the guards, and interruptions."""

import logging

import numpy as np
import polars as pl
import pytest
import torch
from tolerances import SUMS

from llmrec.collaborative.config import DistillConfig
from llmrec.collaborative.teacher import Teacher
from llmrec.errors import UserError
from llmrec.preference import align as loop
from llmrec.preference import objectives
from llmrec.preference.align import _batches, better, error_of_gain, margin
from llmrec.preference.config import PreferenceConfig
from llmrec.preference.policy import Policy
from llmrec.preference.rewards import ExpertsReward

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


def test_s_dpo_on_samples_keeps_what_the_model_has_learnt_of_the_log(aligned, probability, liked):
    """Customers took the liked item of a pair in 13% of the log; on beams, the model unlearns most of that."""
    shares = {}
    for draw in ("samples", "beams"):
        aligned(PreferenceConfig(**{**SDPO, "negatives": 15, "learning_rate": 3e-4, "draw": draw}), draw)
        shares[draw] = probability(liked - 1), probability(liked)
    assert [each.mean() for each in shares["samples"]] == pytest.approx([0.87, 0.13], abs=0.04)
    assert shares["samples"][0].min() > 0.6
    assert shares["beams"][1].mean() < 0.06


@pytest.mark.parametrize("settings", [{}, {"draw": "samples"}, {"updates": 2, "clip": 0.3}], ids=str)
def test_grpo_learns_from_a_reward_what_the_log_hides(aligned, likes, liked, settings):
    _, tops = aligned(PreferenceConfig(**GRPO, **settings), reward=likes)
    assert (tops == liked).mean() > 0.9


@pytest.mark.parametrize("draw", ["beams", "samples"])
def test_experts_pull_and_divergence_holds_back(aligned, probability, liked, world, tmp_path, draw):
    """The experts give the liked item of a pair .6, the offered one .3, and the others the rest.

    The model begins with the offered item nearly always. The less a divergence counts, the closer it comes to them.
    Where it begins differs between processors, so this is measured. The steps are small enough for the divergence to
    hold the model where it began; larger ones wander.
    """
    before, shares = probability(liked).mean(), {}
    for kl in (0.01, 1.0, 30.0):
        table = np.full((20, 20), 0.1 / 18)
        table[np.arange(20), liked], table[np.arange(20), liked - 1] = 0.6, 0.3
        scores = lambda users, histories: np.log(table[[history[-1] for history in histories]])  # noqa: B023, E731
        codes = np.arange(20) // 5
        teacher = Teacher.of_scores(scores, world, codes, DistillConfig(top=20), tmp_path / f"teacher-{kl}")
        config = PreferenceConfig(**{**GRPO, "learning_rate": 1e-3, "reward": "experts", "kl": kl, "draw": draw})
        aligned(config, f"kl {kl}", experts=ExpertsReward(teacher, codes))
        shares[kl] = probability(liked).mean()
    assert shares[0.01] > 0.3
    assert shares[0.01] > shares[1.0] > before + 0.02
    assert abs(shares[30.0] - before) < 0.02


@pytest.mark.parametrize(
    "config",
    [
        {**SDPO, **SHORT},
        {**SDPO, **SHORT, "draw": "samples"},
        {**GRPO, **SHORT, "draw": "samples", "updates": 2, "clip": 0.2},
    ],
    ids=["s-dpo", "s-dpo, samples", "grpo"],
)
def test_killed_and_resumed_equals_undisturbed(aligned, supervised, guard, monkeypatch, config, tmp_path):
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
    cut, undisturbed = (pl.read_parquet(tmp_path / name / loop.RANKS) for name in ("cut", "whole"))
    assert cut.equals(undisturbed)


@pytest.mark.parametrize("config", [SDPO, GRPO, {**GRPO, "draw": "samples", "updates": 2, "clip": 0.2}], ids=str)
def test_accumulation_equals_the_larger_batch(aligned, supervised, monkeypatch, config):
    """Plain gradient descent: Adam would turn the rounding of a gradient near 0 into a whole step."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, rate, **_: torch.optim.SGD(parameters, rate))
    monkeypatch.setattr(loop, "MOMENTS", ())
    start = {name: value.clone() for name, value in supervised.model.state_dict().items()}
    weights, losses = [], []
    for parts in (1, 4):
        settings = {**config, "epochs": 1, "learning_rate": 0.3, "accumulation": parts}
        progress, _ = aligned(PreferenceConfig(**settings), str(parts))
        weights.append({name: value.clone() for name, value in supervised.model.state_dict().items()})
        losses.append([line["loss"] for line in progress.lines[1:]])
    assert losses[1] == pytest.approx(losses[0], abs=SUMS)
    assert max((weights[0][name] - start[name]).abs().max() for name in start) > 1000 * SUMS
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=SUMS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SDPO, "the loss or its gradient is not a finite number"),
        (GRPO, "the model's scores at level 1 of 2 are not numbers"),
    ],
    ids=["s-dpo", "grpo"],
)
def test_a_learning_rate_that_is_too_large(aligned, monkeypatch, settings, said, tmp_path):
    """The second step leaves weights that are no numbers."""
    monkeypatch.setattr(loop, "_rate", lambda step, steps: np.nan if step == 1 else 1.0)
    with pytest.raises(UserError, match=rf"preference\.learning_rate [\d.]+: after 2 steps {said}; lower it") as error:
        aligned(PreferenceConfig(**settings))
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / loop.LAST).exists()


def test_a_process_without_examples_learns_nothing(aligned, monkeypatch):
    """An incomplete only step may leave the last process without a row: its share of the gradient is 0."""
    seen = []

    def none(material, objective, optimizer, progress, batches, rate):
        objective.begin(progress.step, [batch[:0] for batch in batches])
        seen.append(objective.remark())

    monkeypatch.setattr(loop, "_step", none)
    monkeypatch.setattr(loop, "MOMENTS", ())  # no step, no moments
    aligned(PreferenceConfig(**{**GRPO, "epochs": 1}))
    assert seen == [{"reward": 0.0, "constant_groups": 0.0}] * 5


def test_easy_negatives_come_first_and_then_those_of_the_list(aligned, supervised, monkeypatch):
    """10 steps, 30% of them easy."""
    asked, plain = [], Policy.item_scores

    def watched(policy, prompts, items):
        if torch.is_grad_enabled():
            asked.append(items)
        return plain(policy, prompts, items)

    monkeypatch.setattr(Policy, "item_scores", watched)
    pairs, make = [], objectives.make_pairs
    monkeypatch.setattr(objectives, "make_pairs", lambda *given: pairs.append(make(*given)) or pairs[0])
    aligned(PreferenceConfig(**{**SDPO, "epochs": 2, "easy": 0.3}))
    batches = _batches(len(pairs[0].hard), PreferenceConfig(**{**SDPO, "epochs": 2}), 1)
    assert len(asked) == len(batches) == 10
    for step, (items, rows) in enumerate(zip(asked, batches, strict=True)):
        rejected = pairs[0].easy if step < 3 else pairs[0].hard
        np.testing.assert_array_equal(items[:, 1:], rejected[rows])
    assert (pairs[0].easy != pairs[0].hard).any(axis=1).all()


def test_the_guard_sees_what_is_measured(aligned, guard, tmp_path):
    progress, _ = aligned(PreferenceConfig(**{**GRPO, "epochs": 1}), validation=guard)
    first, last = progress.lines[0], progress.lines[-1]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 0
    assert {"recall@10", "recall@50", "ndcg@10", "coverage@10", "popularity@10", "loss", "reward"} <= last.keys()
    assert first["recall@50"] == 1  # 20 items: each is in a list of 50
    table = pl.read_parquet(tmp_path / "run" / loop.RANKS)
    assert table["system"].unique(maintain_order=True).to_list() == [f"step {line['step']}" for line in progress.lines]
    for line in progress.lines:
        own = table.filter(system=f"step {line['step']}")
        assert own["user_id"].to_list() == list(guard.users)
        assert (own["rank"] <= 10).mean() == pytest.approx(line["recall@10"])
    ranks = [
        table.filter(system=f"step {line['step']}")["rank"].cast(pl.Float64).fill_null(np.inf) for line in (first, last)
    ]
    assert last["error"] == error_of_gain(*(each.to_numpy() for each in ranks), "ndcg@10") > 0
    assert (tmp_path / "run" / loop.PICTURE).stat().st_size > 10_000


def test_a_worse_model_is_not_kept(aligned, guard, caplog):
    guard.cases.targets[:] = guard.cases.targets - 1  # what the log has
    with caplog.at_level(logging.WARNING):
        progress, tops = aligned(PreferenceConfig(**{**SDPO, "learning_rate": 0.3, "epochs": 1}), validation=guard)
    assert progress.best == 0
    assert (tops == guard.cases.targets).mean() > 0.9
    assert "No evaluation was better" in caplog.text


def line(step, ndcg, recall, error=0.02):
    return {"step": step, "ndcg@10": ndcg, "recall@50": recall, "recall@10": 1 - ndcg, "error": error}


def test_the_rule_of_the_best():
    lines = [line(0, 0.3, 0.5, 0.0), line(4, 0.4, 0.48)]

    def kept(lines, best, recall_lost, evaluations=1):
        return better(lines, best, PreferenceConfig("grpo", recall_lost=recall_lost, evaluations=evaluations))

    assert kept(lines, 0, 0.05)
    assert not kept(lines, 0, 0.01)
    assert not kept([*lines, line(8, 0.4, 0.6)], 4, 0.05)
    assert not kept([lines[0], line(4, 0.31, 0.5)], 0, 0.05), "less than the error of the gain"
    assert kept([*lines, line(8, 0.41, 0.5)], 4, 0.05), "the error is that of the gain since the start"
    by_recall = PreferenceConfig("grpo", best_by="recall@10", evaluations=1)
    assert not better(lines, 0, by_recall)
    assert better([lines[1] | {"step": 0}, lines[0] | {"step": 4, "error": 0.02}], 0, by_recall)
    assert kept([lines[0], line(4, 0.33, 0.5)], 0, 0.05)
    assert not kept([lines[0], line(4, 0.33, 0.5)], 0, 0.05, evaluations=6), "the best of six gains by chance is larger"


def test_chance_keeps_one_alignment_of_six_however_often_it_is_evaluated():
    assert margin(1) == pytest.approx(1)
    for evaluations in (2, 6, 20):
        gains = np.random.default_rng(0).normal(size=(20_000, evaluations)).max(axis=1)
        assert (gains > margin(evaluations)).mean() == pytest.approx(0.1587, abs=0.01)


def test_the_error_of_a_gain_is_that_of_paired_differences():
    """Gains of 1, 0, 0 and -1 have a standard deviation of 1 / sqrt(2) and a mean with half that error."""
    before, after = np.array([np.inf, 3.0, 11.0, 1.0]), np.array([1.0, 3.0, np.inf, 11.0])
    assert error_of_gain(before, after, "ndcg@10") == pytest.approx(0.5 / 2**0.5)
    assert error_of_gain(before, before, "ndcg@10") == 0
    found = [float(after[row] <= 10) - float(before[row] <= 10) for row in range(4)]  # 1, 0, 0, -1
    assert error_of_gain(before, after, "recall@10") == pytest.approx(np.std(found) / 2)
    assert error_of_gain(before, after, "recall@50") == pytest.approx(np.std([1, 0, -1, 0]) / 2)


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


def test_other_examples_in_the_same_folder(aligned):
    """As many as before, after the same histories."""
    aligned(PreferenceConfig(**{**SDPO, "epochs": 1}))
    with pytest.raises(UserError, match="another model, configuration or log"):
        aligned(PreferenceConfig(**{**SDPO, "epochs": 1}), disliked=True)


def test_each_example_is_learnt_once_per_epoch():
    config = PreferenceConfig("s-dpo", batch_size=3, epochs=2)
    batches = _batches(9, config, 1)
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(9))
    assert [len(batch) for batch in _batches(9, config, 2)] == [6, 6, 6]
    assert [len(batch) for batch in _batches(2, PreferenceConfig("s-dpo", batch_size=3), 1)] == [2]
