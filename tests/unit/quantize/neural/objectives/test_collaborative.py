from math import log

import pytest
import torch
import torch.nn.functional as F

from llmrec.quantize.neural.objectives import collaborative_alignment


@pytest.fixture
def vectors() -> torch.Tensor:
    return F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), dim=1)


def test_lower_where_quantized_items_match_their_vectors(vectors):
    matching = collaborative_alignment(vectors, vectors, 0.2)
    shuffled = collaborative_alignment(vectors.roll(1, dims=0), vectors, 0.2)
    assert matching < shuffled
    halfway = collaborative_alignment((vectors + vectors.roll(1, dims=0)) / 2, vectors, 0.2)
    assert matching < halfway < shuffled


def test_inner_products_over_the_temperature(vectors):
    quantized = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for row in range(12):
        terms = [torch.exp(quantized[row] @ vector / 0.5) for vector in vectors]
        total -= torch.log(terms[row] / sum(terms)).item()
    assert collaborative_alignment(quantized, vectors, 0.5).item() == pytest.approx(total / 12, rel=1e-5)


def test_items_without_behaviour_neither_ask_nor_answer(vectors):
    quantized = torch.randn(12, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    cold = vectors.clone()
    cold[[1, 5, 11]] = 0
    known = [row for row in range(12) if row not in (1, 5, 11)]
    loss = collaborative_alignment(quantized, cold, 0.5)
    torch.testing.assert_close(loss, collaborative_alignment(quantized[known], vectors[known], 0.5))
    loss.backward()
    assert not quantized.grad[[1, 5, 11]].any()
    assert quantized.grad[known].any(dim=1).all()


def test_a_batch_without_behaviour_costs_nothing_and_can_be_stepped():
    quantized = torch.ones(4, 3, requires_grad=True)
    loss = collaborative_alignment(quantized, torch.zeros(4, 3), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert not quantized.grad.any()


def test_equal_quantized_vectors_cost_at_least_log_b(vectors):
    assert collaborative_alignment(torch.zeros(12, 6), vectors, 1.0).item() == pytest.approx(log(12), rel=1e-5)


def test_gradient_steps_bring_the_items_to_their_vectors(vectors):
    quantized = torch.zeros(12, 6, requires_grad=True)
    optimizer = torch.optim.SGD([quantized], lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        collaborative_alignment(quantized, vectors, 1.0).backward()
        optimizer.step()
    assert ((quantized @ vectors.T).argmax(dim=1) == torch.arange(12)).all()
