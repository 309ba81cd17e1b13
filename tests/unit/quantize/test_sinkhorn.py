import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.quantize.classical.kmeans import uniform_mapping


def skewed() -> torch.Tensor:
    """Squared distances [512, 16] of points half of which crowd around the first code."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(16, 4))
    crowd = codes[0] + 0.3 * rng.normal(size=(256, 4))
    points = np.concatenate([crowd, rng.normal(size=(256, 4))])
    return torch.from_numpy(((points[:, None] - codes) ** 2).sum(2)).float()


def written_out(distances: np.ndarray, epsilon: float, iterations: int = 50) -> np.ndarray:
    """LC-Rec's steps in the order it takes them."""
    vectors, codes = distances.shape
    distances = distances.astype(np.float64)
    middle = (distances.max() + distances.min()) / 2
    plan = np.exp(-(distances - middle) / (distances.max() - middle + 1e-5) / epsilon)
    plan /= plan.sum()
    for _ in range(iterations):
        plan /= plan.sum(1, keepdims=True) * vectors
        plan /= plan.sum(0, keepdims=True) * codes
    return plan * vectors


@pytest.mark.parametrize("epsilon", [0.003, 0.1, 1.0])
def test_it_is_lc_recs_normalisation(epsilon):
    plan = uniform_mapping(skewed(), epsilon)
    assert plan.dtype == torch.float64
    np.testing.assert_allclose(plan, written_out(skewed().numpy(), epsilon), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.003, 0.1])
def test_marginals(epsilon):
    plan = uniform_mapping(skewed(), epsilon, iterations=2000)
    torch.testing.assert_close(plan.sum(0), torch.full((16,), 512 / 16, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.ones(512, dtype=torch.float64), atol=2e-2, rtol=0)


def test_a_crowded_code_is_relieved():
    distances = skewed()
    greedy = distances.argmin(1).bincount(minlength=16)
    even, loose = (uniform_mapping(distances, epsilon).argmax(1).bincount(minlength=16) for epsilon in (0.003, 0.1))
    assert greedy.max() > 200
    assert even.min() >= 16
    assert even.max() <= 40
    assert even.max() < loose.max() < greedy.max()


def test_balanced_vectors_keep_their_nearest_codes():
    distances = 1 - torch.eye(8).repeat(4, 1)
    assert (uniform_mapping(distances, 0.003).argmax(1) == distances.argmin(1)).all()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    vectors=st.integers(1, 20),
    codes=st.integers(1, 20),
    epsilon=st.floats(1e-5, 10),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_always_finite(seed, vectors, codes, epsilon, scale):
    distances = torch.rand(vectors, codes, generator=torch.Generator().manual_seed(seed)) * scale
    plan = uniform_mapping(distances, epsilon)
    assert plan.isfinite().all()
    assert (plan >= 0).all()
