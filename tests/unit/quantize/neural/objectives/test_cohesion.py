from math import exp, log

import pytest
import torch

from llmrec.quantize.neural.objectives import cohesion, spread


def test_prefixes_that_point_at_the_item_cost_nothing():
    target = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    vectors = torch.stack([0.7 * target, 0.2 * target, 0.1 * target], dim=1)
    assert cohesion(vectors, target).item() == pytest.approx(0, abs=1e-6)


def test_distances_of_prefixes_not_of_codes():
    target = torch.tensor([[1.0, 1.0]])
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # 45 degrees off, then exact
    assert cohesion(vectors, target).item() == pytest.approx((1 - 0.5**0.5) / 2, rel=1e-6)


def test_an_early_match_beats_a_late_one():
    target = torch.tensor([[1.0, 0.0]])
    aside = torch.tensor([0.0, 1.0])
    early = torch.stack([target[0], torch.zeros(2)])[None]
    late = torch.stack([aside, target[0] - aside])[None]
    assert cohesion(early, target) < cohesion(late, target)


def test_gradient_turns_the_first_code_to_the_item():
    target = torch.tensor([[1.0, 0.0]])
    vectors = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]], requires_grad=True)
    cohesion(vectors, target).backward()
    assert vectors.grad[0, 0, 0] < 0  # a step down the gradient raises the component along the target


def test_spread_of_identical_orthogonal_and_opposite_codes():
    same = torch.ones(6, 3) * torch.arange(1.0, 7.0)[:, None]
    assert spread(same).item() == pytest.approx(0, abs=1e-6)
    assert spread(torch.eye(6)).item() == pytest.approx(-2, rel=1e-6)
    assert spread(torch.eye(6)) < spread(same)
    assert spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-4, rel=1e-6)


def test_spread_pair_by_pair():
    codebook = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    terms = [
        exp(-2 * (1 - torch.cosine_similarity(codebook[one], codebook[other], dim=0).item()))
        for one in range(7)
        for other in range(7)
        if one != other
    ]
    assert spread(codebook).item() == pytest.approx(log(sum(terms) / len(terms)), rel=1e-5)


def test_spread_falls_by_gradient_and_moves_directions_only():
    codebook = (torch.ones(8, 4) + 0.1 * torch.randn(8, 4, generator=torch.Generator().manual_seed(2))).requires_grad_()
    before = spread(codebook)
    before.backward()
    along = (codebook.grad * codebook).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros(8), atol=1e-6, rtol=0)
    assert spread(codebook - 0.5 * codebook.grad) < before
