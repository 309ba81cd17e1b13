"""Each loss against its formula written out, on a policy over 12 items and on groups computed by hand."""

import math

import pytest
import torch
from tolerances import SUMS

from llmrec.preference.losses import STABLE, advantages, grpo, k3, s_dpo

ITEMS = torch.tensor([[3, 0, 7, 11], [5, 2, 9, 4]])


@pytest.fixture
def toy() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy over 12 items after two prompts, which ask for a gradient, and those of its reference."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    return logits.clone().requires_grad_(), logits + torch.randn(2, 12, generator=generator, dtype=torch.float64)


def of_items(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, ITEMS)


def everywhere(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_s_dpo_is_its_formula_and_so_is_its_gradient(toy):
    logits, reference = toy
    pi, ref = of_items(logits), of_items(reference).detach()
    s_dpo(pi, ref, everywhere(pi), 0.7).sum().backward()
    given, logits.grad = logits.grad.clone(), None
    written = torch.zeros((), dtype=torch.float64)
    p, q = logits.softmax(-1), reference.softmax(-1)
    for row, (w, *losers) in enumerate(ITEMS.tolist()):
        ratio = (p[row] / q[row]) ** 0.7
        total = sum(ratio[loser] / ratio[w] for loser in losers)
        written = written - torch.log(1 / (1 + torch.exp(torch.log(total))))
    torch.testing.assert_close(s_dpo(pi, ref, everywhere(pi), 0.7).sum(), written)
    written.backward()
    torch.testing.assert_close(given, logits.grad)


def test_s_dpo_with_one_rejected_item_is_dpo(toy):
    pi, ref = (of_items(logits)[:, :2] for logits in toy)
    dpo = -torch.log(torch.sigmoid(0.3 * ((pi - ref)[:, 0] - (pi - ref)[:, 1])))
    torch.testing.assert_close(s_dpo(pi, ref, everywhere(pi), 0.3), dpo)


@pytest.mark.parametrize("draw", ["samples", "beams"])
def test_s_dpo_on_samples_of_the_reference_ends_at_the_distribution_of_the_preferred(toy, draw):
    """The expected loss over all pairs of a preferred and a rejected item, minimized over the logits of a policy. With
    the two best items of the reference as the rejected ones, one of them loses nearly all of its probability."""
    p, q = (logits[0].detach().softmax(-1) for logits in toy)
    pairs = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    rejected = q if draw == "samples" else torch.zeros(12, dtype=torch.float64).index_fill(0, q.topk(2).indices, 0.5)
    logits = q.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        pi = logits.log_softmax(-1)[pairs]
        total = (p[pairs[:, 0]] * rejected[pairs[:, 1]] * s_dpo(pi, q.log()[pairs], everywhere(pi), 1.0)).sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = logits.detach().softmax(-1)
    if draw == "samples":
        torch.testing.assert_close(found, p, rtol=0, atol=1e-3)
    else:
        assert found[q.topk(2).indices].sum() < 0.5 * p[q.topk(2).indices].sum()


def test_s_dpo_ignores_a_constant_and_missing_items(toy):
    pi, ref = map(of_items, toy)
    loss = s_dpo(pi, ref, everywhere(pi), 1.0)
    torch.testing.assert_close(s_dpo(pi + 5, ref, everywhere(pi), 1.0), loss)
    there = everywhere(pi)
    there[:, 2] = False
    torch.testing.assert_close(s_dpo(pi, ref, there, 1.0), s_dpo(*(x[:, [0, 1, 3]] for x in (pi, ref, there)), 1.0))
    there[:, 1:] = False
    assert s_dpo(pi, ref, there, 1.0).tolist() == [0, 0]


def test_s_dpo_at_the_reference_is_log_of_one_more_than_the_rejected(toy):
    pi = of_items(toy[1])
    assert s_dpo(pi, pi, everywhere(pi), 1.0).tolist() == pytest.approx([math.log(4)] * 2)


def test_advantages_of_groups_computed_by_hand():
    rewards = torch.tensor([[1.0, 0, 0, 0], [2, 2, 2, 2], [1, 3, 9, 9], [5, 0, 0, 0]])
    there = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    found = advantages(rewards, there)
    # mean 1/4, deviation sqrt((9/16 + 3 * 1/16) / 3) = 1/2; mean 2, deviation sqrt(2)
    high, root = 0.5 + STABLE, math.sqrt(2) + STABLE
    expected = [[0.75 / high, *[-0.25 / high] * 3], [0.0] * 4, [-1 / root, 1 / root, 0, 0], [0.0] * 4]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_k3_is_never_negative_and_its_mean_is_the_divergence(toy):
    p, q = (logits.detach().log_softmax(-1) for logits in toy)
    assert (k3(p, q) >= 0).all()
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), (p.exp() * (p - q)).sum())


def test_grpo_without_clip_is_its_formula_and_so_is_its_gradient(toy):
    logits, reference = toy
    advantage = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.2, 0.1, -0.4, 0.1]], dtype=torch.float64)
    pi, ref = of_items(logits), of_items(reference).detach()
    grpo(pi, pi.detach(), ref, advantage, 0.05).sum().backward()
    given, logits.grad = logits.grad.clone(), None
    p = logits.softmax(-1).gather(1, ITEMS)
    ratio = ref.exp() / p
    (0.05 * (ratio - ratio.log() - 1) - p / p.detach() * advantage).sum().backward()
    torch.testing.assert_close(given, logits.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # inside the clip
        (1.3, 2.0, 2.4, 0.0),  # a good item that has gained enough: clipped to 1.2
        (0.5, 2.0, 1.0, 1.0),  # a good item that has lost: not clipped
        (0.7, -2.0, -1.6, 0.0),  # a bad item that has lost enough: clipped to 0.8
        (1.25, -2.0, -2.5, -2.5),  # a bad item that has gained, within 1 + clip + delta
        (4.0, -2.0, -2.6, -2.6),  # a bad item that exploded: its ratio is 1.3
    ],
)
def test_ecpo_on_ratios_computed_by_hand(ratio, advantage, gain, slope):
    old = torch.tensor([[-3.0]])
    policy = (old + math.log(ratio)).requires_grad_()
    loss = grpo(policy, old, policy.detach(), torch.tensor([[advantage]]), 0.0, clip=0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-gain, abs=SUMS)
    assert policy.grad.item() == pytest.approx(-slope, abs=SUMS)
