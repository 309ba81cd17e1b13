"""Scores of given items with gradients, against the plain model; draws without replacement, against exact numbers."""

from itertools import permutations

import numpy as np
import pytest
import torch
from tolerances import CURVES, SCORES, SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.preference.policy import Policy, weights_of

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8], [40, 41]]


def policy_of(deep, scoring="catalogue", new=None, **settings) -> Policy:
    config = DecodeConfig(**{"dtype": "float32", "scoring": scoring, "beams": 5, **settings})
    return Policy(deep.model, deep.vocabulary, deep.trie, config, is_cold=new)


def wanted() -> np.ndarray:
    """Items with repetitions, in no order, and gaps; the second prompt is asked about none."""
    items = np.random.default_rng(1).integers(-1, 20, (4, 9))
    items[1] = -1
    return items


@pytest.mark.parametrize("with_new", [False, True], ids=["none new", "some new"])
@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
def test_items_are_scored_as_the_plain_model_has_them(deep, new_items, exhaustive, scoring, with_new):
    new = new_items if with_new else None
    items = wanted()
    given = policy_of(deep, scoring, new).item_scores(PROMPTS, items)
    expected = exhaustive(deep, PROMPTS, scoring, new).sum(axis=2)
    expected = np.where(items >= 0, expected[np.arange(4)[:, None], items], 0)
    np.testing.assert_allclose(given.detach().numpy(), expected, atol=SCORES)


def test_scores_are_those_that_the_search_compares(deep, new_items):
    policy = policy_of(deep, new=new_items)
    ranking = policy.search(PROMPTS, 7)
    np.testing.assert_allclose(policy.item_scores(PROMPTS, ranking.items).detach(), ranking.scores, atol=SUMS)


def test_gradients_are_those_of_the_plain_model(deep):
    """The model's own forward pass, one item after the other, with a softmax over the children written out."""
    items = np.array([[3, 8, 8], [0, 19, 5]])
    weight = torch.tensor([[1.0, -2, 0.5], [3, 1, -1]])
    policy = policy_of(deep)
    deep.model.requires_grad_(True)
    (policy.item_scores(PROMPTS[:2], items) * weight).sum().backward()
    given = {name: parameter.grad.clone() for name, parameter in deep.model.named_parameters()}
    deep.model.zero_grad()
    total = torch.zeros(())
    for row, prompt in enumerate(PROMPTS[:2]):
        for item, factor in zip(items[row], weight[row], strict=True):
            tokens = deep.vocabulary.token_ids(deep.codes[item])
            logits = deep.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
            for level, token in enumerate(tokens):
                below = (deep.codes[:, :level] == deep.codes[item, :level]).all(axis=1)
                children = np.unique(deep.vocabulary.token_ids(deep.codes[below])[:, level])
                total = total + factor * (logits[level, token] - logits[level, children].logsumexp(0))
    total.backward()
    for name, parameter in deep.model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(given[name], parameter.grad, rtol=0, atol=CURVES * max(scale, SUMS))


def test_no_items_have_scores_of_0(deep):
    assert not policy_of(deep).item_scores(PROMPTS, np.full((4, 2), -1)).any()


def test_a_search_after_a_step_sees_it(deep):
    policy = policy_of(deep)
    before = policy.search(PROMPTS, 3)
    with torch.no_grad():
        for parameter in deep.model.parameters():
            parameter.mul_(1.3)
    after = policy.search(PROMPTS, 3)
    fresh = policy_of(deep).search(PROMPTS, 3)
    np.testing.assert_array_equal(after.scores, fresh.scores)
    assert (before.scores != after.scores).any()


def test_other_weights_for_a_while(deep):
    policy = policy_of(deep)
    trained = dict(deep.model.named_parameters())
    own = policy.item_scores(PROMPTS, wanted())
    start = {name: parameter.detach() * 1.3 for name, parameter in trained.items()}
    with weights_of(trained, start), torch.no_grad():
        other = policy.item_scores(PROMPTS, wanted())
    assert (other != own).any()
    assert torch.equal(policy.item_scores(PROMPTS, wanted()), own)


def inclusion(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The probability of each item to be among k draws without replacement."""
    found = np.zeros(len(probabilities))
    for drawn in permutations(range(len(probabilities)), k):
        left, chance = 1.0, 1.0
        for item in drawn:
            chance *= probabilities[item] / left
            left -= probabilities[item]
        found[list(drawn)] += chance
    return found


@pytest.mark.parametrize("k", [1, 2])
def test_draws_have_the_exact_inclusion_probabilities(loud, exhaustive, k):
    draws = 3000
    ranking = policy_of(loud, batch_size=500).sample([PROMPTS[0]] * draws, k, np.arange(draws))
    assert all(len(set(row)) == k for row in ranking.items.tolist())
    expected = inclusion(np.exp(exhaustive(loud, PROMPTS[:1], "catalogue").sum(axis=2)[0]), k)
    share = np.bincount(ranking.items.ravel(), minlength=20) / draws
    assert (np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws) + 1e-3).all()


def test_draws_are_repeatable_sorted_and_filtered(deep):
    policy = policy_of(deep)
    filters = [Filter(excluded=np.array([3, 5])), Filter(), Filter(allowed=np.array([7, 9])), Filter()]
    first, again = (policy.sample(PROMPTS, 4, [8] * 4, filters) for _ in range(2))
    np.testing.assert_array_equal(first.items, again.items)
    assert not np.isin(first.items[0], [3, 5]).any()
    assert sorted(first.items[2]) == [-1, -1, 7, 9]
    assert (first.scores[:, :-1] >= first.scores[:, 1:]).all()
    assert (policy.sample(PROMPTS, 4, [9] * 4, filters).items != first.items).any()
    alone = policy.sample(PROMPTS[3:], 4, [8])
    np.testing.assert_array_equal(alone.items[0], first.items[3])
    np.testing.assert_array_equal(policy.search(PROMPTS, 4).items, policy_of(deep).search(PROMPTS, 4).items)
