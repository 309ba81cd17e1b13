from math import log

import pytest
import torch

from llmrec.quantize.neural.objectives import contrastive_reconstruction


def test_perfect_reconstruction_of_orthonormal_items_costs_nothing_as_the_temperature_falls():
    x = torch.eye(8)
    losses = [contrastive_reconstruction(x, x, temperature).item() for temperature in (1.0, 0.3, 0.1, 0.02)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_equal_reconstructions_cost_log_b(temperature):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    loss = contrastive_reconstruction(x, torch.ones(8, 5), temperature)
    assert loss.item() == pytest.approx(log(8), rel=1e-5)


def test_the_formula_item_by_item():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    total = 0.0
    for row in range(6):
        terms = [torch.exp(torch.cosine_similarity(x[row], other, dim=0) / 0.2) for other in y]
        total -= torch.log(terms[row] / sum(terms)).item()
    assert contrastive_reconstruction(x, y, 0.2).item() == pytest.approx(total / 6, rel=1e-5)


def test_only_directions_count():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    lengths = torch.arange(1.0, 7.0)[:, None]
    torch.testing.assert_close(
        contrastive_reconstruction(lengths * x, y / lengths, 0.1), contrastive_reconstruction(x, y, 0.1)
    )


def test_gradient_steps_tell_the_reconstructions_apart():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, 8, generator=generator)
    y = torch.randn(16, 8, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([y], lr=1.0)
    losses = []
    for _ in range(100):
        loss = contrastive_reconstruction(x, y, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    nearest = torch.cosine_similarity(x[:, None], y[None], dim=2).argmax(dim=1)
    assert torch.equal(nearest, torch.arange(16))
