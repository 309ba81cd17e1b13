"""Each kind of codebook by its defining property, and against vector-quantize-pytorch where both have it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ, ResidualVQ, SimVQ, VectorQuantize

from llmrec.quantize import RQVAEConfig
from llmrec.quantize.config import grid_size
from llmrec.quantize.neural.codebooks import (
    EMACodebook,
    FixedLinearCodebook,
    GridBound,
    GridCodebook,
    LearnedCodebook,
    SimVQCodebook,
    nearest_code,
    squared_distances,
)

GRIDS = [[8, 6, 5], [3, 3], [7, 2, 4], [5]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learned(codes: torch.Tensor) -> LearnedCodebook:
    codebook = LearnedCodebook(*codes.shape)
    codebook.place(codes)
    return codebook


def ema(codes: torch.Tensor, decay: float) -> EMACodebook:
    codebook = EMACodebook(*codes.shape, decay)
    codebook.place(codes)
    return codebook


# nearest codes


def test_nearest_code_and_distances_are_those_of_brute_force():
    residual, codes = normal(40, 6), normal(11, 6, seed=1)
    brute = ((residual[:, None] - codes) ** 2).sum(2)
    torch.testing.assert_close(squared_distances(residual, codes), brute)
    assert (nearest_code(residual, codes) == brute.argmin(1)).all()


def test_a_level_with_an_epsilon_spreads_its_batch():
    codes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    codebook, residual = learned(codes), normal(64, 2)
    nearest, even = codebook.select(residual, codes), codebook.select(residual, codes, 0.1)
    assert nearest.tolist() == [0] * 64
    assert 28 <= even.sum() <= 36
    # those that lie towards the other code are the ones to go
    assert residual[even == 1, 0].min() >= residual[even == 0, 0].max()


def test_lookup_agrees_with_vector_quantize():
    codes, x = normal(16, 4), normal(50, 4, seed=1)
    theirs = VectorQuantize(4, 16, rotation_trick=False).eval()
    theirs._codebook.embed.copy_(codes[None])
    quantized, index, _ = theirs(x)
    ours = learned(codes).select(x, codes)
    assert (ours == index).all()
    torch.testing.assert_close(codes[ours], quantized)


# learned


def test_the_loss_draws_code_and_latent_together():
    residual, code = normal(6, 3).requires_grad_(), normal(6, 3, seed=1).requires_grad_()
    loss = learned(normal(4, 3)).loss(residual, code, beta=0.25)
    loss.backward()
    difference = (residual - code).detach()
    torch.testing.assert_close(loss, 1.25 * difference.square().mean())
    torch.testing.assert_close(code.grad, -2 * difference / 18)
    torch.testing.assert_close(residual.grad, 0.25 * 2 * difference / 18)


# EMA


def test_without_memory_a_code_is_the_mean_of_its_batch():
    x, index = normal(30, 3), torch.arange(30) % 4
    codebook = ema(normal(4, 3, seed=1), decay=0.0)
    codebook.update(x, index)
    means = torch.stack([x[index == code].mean(0) for code in range(4)])
    torch.testing.assert_close(codebook.effective(), means, rtol=1e-4, atol=1e-4)


def test_repeated_batches_lead_to_the_mean():
    x, index = normal(30, 3), torch.arange(30) % 4
    codebook = ema(normal(4, 3, seed=1), decay=0.9)
    for _ in range(200):
        codebook.update(x, index)
    means = torch.stack([x[index == code].mean(0) for code in range(4)])
    torch.testing.assert_close(codebook.effective(), means, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codebook.counts, index.bincount().float(), rtol=1e-3, atol=1e-3)


def test_an_unused_code_stays_where_it_is():
    codes = normal(4, 3, seed=1)
    codebook = ema(codes, decay=0.9)
    for _ in range(5):
        codebook.update(normal(30, 3), torch.arange(30) % 3)
    torch.testing.assert_close(codebook.effective()[3], codes[3], rtol=1e-3, atol=1e-3)
    assert codebook.counts[3].item() == pytest.approx(0.9**5)


def test_a_reset_code_survives_the_next_updates():
    """Left with its old count and sum, it would be back at once."""
    codebook = ema(normal(4, 3, seed=1), decay=0.99)
    for _ in range(1000):
        codebook.update(normal(30, 3), torch.arange(30) % 3)
    vector = torch.tensor([[5.0, 6.0, 7.0]])
    codebook.reset(torch.tensor([3]), vector)
    codebook.update(normal(30, 3), torch.arange(30) % 3)
    torch.testing.assert_close(codebook.effective()[3:], vector, rtol=1e-3, atol=1e-3)


def test_ema_takes_commitment_alone_and_no_gradient():
    codebook = ema(normal(4, 3), decay=0.9)
    residual = normal(6, 3).requires_grad_()
    code = codebook.effective()[torch.zeros(6, dtype=torch.long)]
    torch.testing.assert_close(codebook.loss(residual, code, 0.25), 0.25 * (residual - code).square().mean())
    assert not list(codebook.parameters())


def test_ema_agrees_with_vector_quantize():
    codes = normal(8, 4)
    theirs = VectorQuantize(4, 8, decay=0.8, rotation_trick=False).train()
    theirs._codebook.embed.copy_(codes[None])
    theirs._codebook.embed_avg.copy_(codes[None])
    ours = ema(codes, decay=0.8)
    for step in range(5):
        x = normal(50, 4, seed=step)
        _, index, _ = theirs(x)
        chosen = ours.select(x, ours.effective())
        assert (chosen == index).all()
        ours.update(x, chosen)
        torch.testing.assert_close(ours.effective(), theirs.codebook, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.counts, theirs._codebook.cluster_size[0])


def test_residual_lookup_agrees_with_residual_vq():
    tables, x = normal(3, 16, 4), normal(50, 4, seed=1)
    theirs = ResidualVQ(dim=4, num_quantizers=3, codebook_size=16, rotation_trick=False).eval()
    for layer, table in zip(theirs.layers, tables, strict=True):
        layer._codebook.embed.copy_(table[None])
    quantized, index, _ = theirs(x)
    residual, total = x, torch.zeros_like(x)
    for level, table in enumerate(tables):
        chosen = learned(table).select(residual, table)
        assert (chosen == index[:, level]).all()
        residual, total = residual - table[chosen], total + table[chosen]
    torch.testing.assert_close(total, quantized)


# SimVQ and fixed-linear


def test_simvq_learns_its_map_alone_and_moves_every_code():
    torch.manual_seed(0)
    codebook = SimVQCodebook(16, 4)
    before, frozen = codebook.effective().detach().clone(), codebook.frozen.clone()
    assert {name for name, _ in codebook.named_parameters()} == {"map.weight", "map.bias"}
    optimizer = torch.optim.SGD(codebook.parameters(), lr=0.1)
    one = codebook.effective()[:1]
    codebook.loss(torch.ones(1, 4), one, beta=0.25).backward()
    optimizer.step()
    assert (codebook.frozen == frozen).all()
    assert codebook.frozen.grad is None
    assert ((codebook.effective() - before).norm(dim=1) > 1e-4).all()


def test_simvq_draws_codes_of_unit_length_in_the_mean():
    torch.manual_seed(0)
    assert SimVQCodebook(4000, 64).frozen.square().sum(1).mean().item() == pytest.approx(1, abs=0.02)


def test_simvq_agrees_with_vector_quantize_pytorch():
    torch.manual_seed(0)
    x = normal(50, 4, seed=1)
    theirs = SimVQ(4, 16, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    ours = SimVQCodebook(16, 4)
    ours.frozen.copy_(theirs.frozen_codebook)
    with torch.no_grad():
        ours.map.weight.copy_(theirs.code_transform.weight)
        ours.map.bias.zero_()
    quantized, index, loss = theirs(x[None])
    codes = ours.effective()
    chosen = ours.select(x, codes)
    assert (chosen == index[0]).all()
    torch.testing.assert_close(codes[chosen], quantized[0])
    torch.testing.assert_close(ours.loss(x, codes[chosen], beta=0.25), loss)
    torch.testing.assert_close(codes[chosen], theirs.indices_to_codes(chosen))


def test_fixed_linear_starts_on_its_codes_and_learns_its_map_alone():
    codebook, codes = FixedLinearCodebook(5, 3), normal(5, 3)
    codebook.place(codes)
    torch.testing.assert_close(codebook.effective(), codes)
    codebook.effective().sum().backward()
    assert {name for name, _ in codebook.named_parameters()} == {"map.weight"}
    assert codebook.map.weight.grad.abs().sum() > 0
    assert not codebook.frozen.requires_grad


# FSQ


def fsq(grid: list[int], symmetric: bool, levels: int = 1) -> tuple[GridBound, list[GridCodebook]]:
    return GridBound(grid, symmetric, levels), [GridCodebook(grid, symmetric, level, levels) for level in range(levels)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_grid_points_and_indices_are_one_to_one(grid, symmetric):
    _, (codebook,) = fsq(grid, symmetric)
    codes = codebook.effective()
    settings = RQVAEConfig(
        codebook="fsq-symmetric" if symmetric else "fsq", grid=grid, latent=len(grid), init="none", reset_every=0
    )
    assert len(codes) == grid_size(settings) == len(codes.unique(dim=0))
    assert (codebook.select(codes, codes) == torch.arange(len(codes))).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_axis_takes_exactly_its_values(grid, symmetric):
    bound, (codebook,) = fsq(grid, symmetric)
    # dense as well as wide: normal draws alone miss cells
    sweep = torch.linspace(-20, 20, 4001)
    for axis, values in enumerate(grid):
        z = torch.zeros(len(sweep), len(grid))
        z[:, axis] = sweep
        bounded = bound(z)
        reached = codebook.effective()[codebook.select(bounded, codebook.effective())][:, axis].unique()
        half = values // 2
        lowest, highest = -half, half if symmetric or values % 2 else half - 1
        torch.testing.assert_close(reached, torch.arange(lowest, highest + 1) / half)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_zero_stays_zero(grid, symmetric):
    bound, (codebook,) = fsq(grid, symmetric)
    bounded = bound(torch.zeros(1, len(grid)))
    torch.testing.assert_close(bounded, torch.zeros(1, len(grid)), atol=1e-6, rtol=0)
    assert (codebook.effective()[codebook.select(bounded, codebook.effective())] == 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_axes_of_any_length_keep_their_codes_in_range(symmetric):
    for values in range(2, 4097):
        bound, (codebook,) = fsq([values], symmetric)
        index = codebook.select(bound(torch.tensor([[-1e6], [-30.0], [0.0], [30.0], [1e6]])), codebook.effective())
        assert index.tolist() == [0, 0, values // 2, *[len(codebook.effective()) - 1] * 2]


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_index_is_reached(symmetric):
    bound, (codebook,) = fsq([8, 6, 5], symmetric)
    axes = [torch.linspace(-6, 6, 61)] * 3
    z = torch.tensor(list(itertools.product(*(axis.tolist() for axis in axes))))
    index = codebook.select(bound(z), codebook.effective())
    assert (index.bincount() > 0).all()
    assert len(index.bincount()) == len(codebook.effective())


@settings(max_examples=100, deadline=None)
@given(
    grid=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 100.0]),
)
def test_rounding_finds_the_nearest_grid_point(grid, symmetric, seed, scale):
    bound, (codebook,) = fsq(grid, symmetric)
    bounded = bound(normal(20, len(grid), seed=seed) * scale)
    codes = codebook.effective()
    chosen = ((bounded - codes[codebook.select(bounded, codes)]) ** 2).sum(1)
    torch.testing.assert_close(chosen, squared_distances(bounded, codes).amin(1), atol=1e-5, rtol=1e-5)


def test_levels_share_the_latent_without_touching():
    bound, codebooks = fsq([3, 4], False, levels=3)
    bounded = bound(normal(20, 6))
    residual, total = bounded, torch.zeros_like(bounded)
    for codebook in codebooks:
        code = codebook.effective()[codebook.select(residual, codebook.effective())]
        residual, total = residual - code, total + code
    scale = torch.tensor([1, 2] * 3)
    torch.testing.assert_close(total, (bounded * scale).round() / scale)


@pytest.mark.parametrize("grid", [[8, 6, 5], [3, 3], [7, 4]])
def test_the_papers_reading_agrees_with_vector_quantize_pytorch(grid):
    bound, (codebook,) = fsq(grid, symmetric=False)
    z = (2 * normal(1, 200, len(grid))).requires_grad_()
    other = z.detach().clone().requires_grad_()
    theirs, index = FSQ(grid)(other)
    bounded = bound(z[0])
    chosen = codebook.select(bounded, codebook.effective())
    ours = bounded + (codebook.effective()[chosen] - bounded).detach()
    assert (chosen == index[0]).all()
    torch.testing.assert_close(ours, theirs[0])
    weight = normal(200, len(grid), seed=2)
    (ours * weight).sum().backward()
    (theirs[0] * weight).sum().backward()
    torch.testing.assert_close(z.grad, other.grad)
