import numpy as np
import pytest
import torch

from llmrec.quantize.neural.objectives import diversity, group_codes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_groups_are_of_nearly_equal_size_and_repeatable():
    codebook = torch.randn(32, 4, generator=seeded())
    groups = group_codes(codebook, 10, seed=0)
    sizes = groups.bincount(minlength=10)
    assert groups.dtype == torch.int64
    assert sorted(sizes.tolist()) == [3] * 8 + [4] * 2
    assert torch.equal(groups, group_codes(codebook, 10, seed=0))


def test_groups_are_neighbourhoods():
    places = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    codebook = places.repeat_interleave(4, dim=0) + 0.1 * torch.randn(16, 2, generator=seeded())
    groups = group_codes(codebook, 4, seed=0).view(4, 4)
    assert (groups == groups[:, :1]).all()
    assert sorted(groups[:, 0].tolist()) == [0, 1, 2, 3]


def test_groups_of_less_than_two_are_refused():
    with pytest.raises(ValueError, match="19 codes do not fill 10 groups of two"):
        group_codes(torch.randn(19, 4), 10, seed=0)


def test_self_is_excluded():
    # every code is alone with one mate, so the answer is known and the draw plays no part
    codebook = torch.tensor([[2.0, 0], [1, 0], [0, 3], [0, 1]])
    groups = torch.tensor([0, 0, 1, 1])
    codes = torch.tensor([0, 2])
    expected = 0.0
    for code, mate in ((0, 1), (2, 3)):
        scores = {other: codebook[code] @ codebook[other] for other in range(4) if other != code}
        expected -= torch.log_softmax(torch.stack(list(scores.values())), 0)[list(scores).index(mate)].item()
    assert diversity(codes, codebook, groups, seeded()).item() == pytest.approx(expected / 2, rel=1e-6)


def test_every_mate_is_drawn_alike_and_never_the_code_itself():
    # with codes of growing length on one ray, a loss tells which mate was asked for
    groups = torch.tensor([0, 1, 0, 0, 1, 0])
    codebook = torch.arange(6.0)[:, None]
    codes = torch.tensor([3])
    losses = {}
    for mate in (0, 2, 5):
        scores = (codebook[3] @ codebook.T).clone()
        scores[3] = -torch.inf
        losses[mate] = -torch.log_softmax(scores, 0)[mate].item()
    generator = seeded(1)
    drawn = [diversity(codes, codebook, groups, generator).item() for _ in range(900)]
    found = [min(losses, key=lambda mate: abs(losses[mate] - loss)) for loss in drawn]
    np.testing.assert_allclose([losses[mate] for mate in found], drawn, rtol=1e-5)
    counts = [found.count(mate) for mate in losses]
    assert min(counts) > 250


def test_lower_if_groups_are_tight_and_apart():
    groups = torch.arange(16) % 4
    tight = 3 * torch.eye(4)[groups] + 0.1 * torch.randn(16, 4, generator=seeded())
    codes = torch.arange(16)
    mixed = tight.view(4, 4, 4).transpose(0, 1).reshape(16, 4)  # each group takes a code from each neighbourhood
    assert diversity(codes, tight, groups, seeded()) < diversity(codes, mixed, groups, seeded())


def test_gradient_reaches_unused_codes_too_and_lowers_the_loss():
    codebook = torch.randn(20, 4, generator=seeded()).requires_grad_()
    groups = group_codes(codebook, 5, seed=0)
    codes = torch.arange(10)
    optimizer = torch.optim.SGD([codebook], lr=0.5)
    before = diversity(codes, codebook, groups, seeded()).item()
    for step in range(40):
        optimizer.zero_grad()
        diversity(codes, codebook, groups, seeded(step)).backward()
        assert codebook.grad.any(dim=1).all()
        optimizer.step()
    assert diversity(codes, codebook, groups, seeded()).item() < before
