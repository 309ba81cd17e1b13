from math import exp, log

import pytest
import torch

from llmrec.quantize.neural.objectives import cluster_contrast, correlation

Z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def shares(vectors: torch.Tensor, temperature: float) -> list[list[float]]:
    """Softmax over the other rows of the cosines, by loops."""
    cosines = torch.cosine_similarity(vectors[:, None], vectors, dim=2).tolist()
    result = []
    for one, row in enumerate(cosines):
        weights = [0 if other == one else exp(cosine / temperature) for other, cosine in enumerate(row)]
        result.append([weight / sum(weights) for weight in weights])
    return result


def test_clusters_by_loops():
    clusters = [0, 1, 0, 2, 1, 0, 3]
    terms = []
    for one, row in enumerate(shares(Z, 0.3)):
        mates = [other for other in range(7) if other != one and clusters[other] == clusters[one]]
        if mates:
            terms.append(-sum(log(row[other]) for other in mates) / len(mates))
    assert len(terms) == 5
    found = cluster_contrast(Z, torch.tensor(clusters), 0.3).item()
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_items_alone_in_their_clusters_cost_nothing_and_give_no_gradient():
    latents = Z.clone().requires_grad_()
    loss = cluster_contrast(latents, torch.arange(7), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert (latents.grad == 0).all()


def test_a_cluster_far_from_the_others_costs_the_least_there_can_be():
    """Two equal items, and two opposite ones: each item has one positive and shares its softmax with nobody."""
    latents = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert cluster_contrast(latents, torch.tensor([0, 0, 1, 1]), 0.05).item() == pytest.approx(0, abs=1e-6)
    assert cluster_contrast(latents, torch.tensor([0, 1, 0, 1]), 0.05).item() == pytest.approx(40, rel=1e-5)


def test_correlation_by_loops():
    other = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    terms = [
        sum(p * log(p / q) for p, q in zip(target, found, strict=True) if p)
        for target, found in zip(shares(Z, 0.3), shares(other, 0.3), strict=True)
    ]
    assert correlation(Z, other, 0.3).item() == pytest.approx(sum(terms) / 7, rel=1e-4)


def test_turned_and_scaled_codes_keep_the_correlations():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
    assert correlation(Z, 5 * Z @ turn, 0.2).item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_restores_the_correlations():
    moved = (Z + 0.5 * torch.randn(7, 3, generator=torch.Generator().manual_seed(3))).requires_grad_()
    before = correlation(Z, moved, 0.3)
    before.backward()
    assert torch.isfinite(moved.grad).all()
    assert correlation(Z, moved - 0.1 * moved.grad, 0.3) < before
