from math import exp, log

import pytest
import torch

from llmrec.quantize.neural.objectives import sibling_contrast

CODES = torch.tensor([[0, 1, 2], [0, 1, 0], [0, 2, 2], [1, 1, 2], [1, 1, 2], [2, 0, 0]])


def test_siblings_by_loops():
    residuals = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    terms = []
    for level in range(3):
        for one in range(6):
            siblings = [other for other in range(6) if (CODES[other, :level] == CODES[one, :level]).all()]
            scores = [
                exp(torch.cosine_similarity(residuals[one, level], residuals[other, level], dim=0).item() / 0.3)
                for other in siblings
            ]
            terms.append(-log(scores[siblings.index(one)] / sum(scores)))
    assert sibling_contrast(residuals, CODES, 0.3).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_equal_items_cost_the_log_of_their_siblings():
    """At the first level, 6 items; at the second, 3, 2 and 1; at the third, 2, 1, 2 and 1."""
    alike = torch.ones(6, 3, 4)
    by_level = [6 * log(6), 3 * log(3) + 2 * log(2), 2 * log(2) + 2 * log(2)]
    assert sibling_contrast(alike, CODES, 0.1).item() == pytest.approx(sum(by_level) / 18, rel=1e-5)


def test_one_level_contrasts_all_items():
    residuals = torch.eye(4)[:, None]
    found = sibling_contrast(residuals, torch.zeros(4, 1, dtype=torch.int64), 1.0).item()
    assert found == pytest.approx(log(1 + 3 * exp(-1)), rel=1e-5)


def test_gradient_steps_turn_siblings_apart_and_leave_others_alone():
    residuals = (torch.ones(4, 2, 3) + 0.1 * torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))).detach()
    residuals.requires_grad_()
    codes = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0]])
    sibling_contrast(residuals, codes, 0.5).backward()
    assert residuals.grad[:2, 1].abs().sum() > 0
    assert (residuals.grad[2:, 1] == 0).all()
