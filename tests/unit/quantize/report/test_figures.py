import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmrec.quantize import Quantizer, TokenizeConfig, quantizer_class
from llmrec.quantize.report import figures
from llmrec.quantize.report.figures import (
    BLOCK,
    Reconstruction,
    code_figures,
    collision_rate,
    distortion,
    distortion_by_level,
    prefix_cohesion,
)


def fitted(x: np.ndarray, **settings: int) -> Quantizer:
    return quantizer_class("rq-kmeans")(TokenizeConfig(iterations=5, **settings)).fit(x)


def test_even_use_and_no_collision():
    codes = np.stack(np.meshgrid(np.arange(4), np.arange(8)), -1).reshape(-1, 2)
    found = code_figures(codes, [4, 8])
    assert found["usage"] == [1.0, 1.0]
    assert found["perplexity"] == pytest.approx([4, 8])
    assert found["entropy"] == pytest.approx([1, 1])
    assert found["gini"] == pytest.approx([0, 0])
    assert (found["collision_rate"], found["max_collision"]) == (0, 1)
    assert found["collision_groups"] == {"1": 32}


def test_a_single_code():
    found = code_figures(np.zeros((10, 1), np.int32), [4])
    assert (found["usage"], found["perplexity"], found["entropy"]) == ([0.25], [1.0], [0.0])
    assert found["gini"] == pytest.approx([1 - 1 / 4])
    assert (found["collision_rate"], found["max_collision"]) == (0.9, 10)


def test_uneven_use_by_hand():
    """Counts 0, 1, 1, 2: entropy 1.5 log 2; Gini is half the mean difference of two codes over their mean of 1."""
    found = code_figures(np.array([[1], [3], [2], [3]]), [4])
    assert found["usage"] == [0.75]
    assert found["perplexity"] == pytest.approx([2**1.5])
    assert found["entropy"] == pytest.approx([0.75])
    assert found["gini"] == pytest.approx([(2 * (1 + 1 + 2 + 0 + 1 + 1) / 16) / 2])


@given(arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 6)))
def test_gini_is_half_the_relative_mean_difference(first):
    counts = np.bincount(first, minlength=7)
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert code_figures(first[:, None], [7])["gini"][0] == pytest.approx(differences / (2 * counts.mean()))


def test_collision_rate_counts_items_beyond_the_distinct_tuples():
    codes = np.array([[0], [0], [0], [1], [1], [2], [3], [4]])
    assert collision_rate(codes) == pytest.approx(3 / 8)
    assert code_figures(codes, [5])["collision_groups"] == {"1": 3, "2": 1, "3": 1}


def test_distortion_is_relative_to_the_variance():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 7 + 3
    assert distortion(x, x) == 0
    assert distortion(x, np.broadcast_to(x.mean(0), x.shape)) == pytest.approx(1)


def test_equal_items_have_no_variance_to_compare_with():
    assert distortion(np.ones((5, 3), np.float32), np.zeros((5, 3), np.float32)) is None


def test_distortion_is_the_same_in_one_block_or_many():
    x = np.random.default_rng(0).normal(size=(BLOCK + 100, 3)).astype(np.float32) + 5
    quantizer = fitted(x, levels=2, codes=4)
    codes = quantizer.encode(x)
    reconstruction = quantizer.decode(codes)
    at_once = ((x - reconstruction) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert distortion(x, Reconstruction(quantizer, codes)) == pytest.approx(at_once, rel=1e-4)
    curve = distortion_by_level(x, quantizer, codes)
    assert curve[-1] == pytest.approx(at_once, rel=1e-4)
    assert curve[0] > curve[1]
    first = quantizer.codebooks[0][codes[:, 0]]
    assert curve[0] == pytest.approx(((x - first) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)


def test_no_curve_where_the_first_codes_mean_nothing_alone(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    quantizer = fitted(x, levels=2, codes=4)
    monkeypatch.setattr(type(quantizer), "decode_first", Quantizer.decode_first)
    assert distortion_by_level(x, quantizer, quantizer.encode(x)) is None


def cohesion_by_hand(x: np.ndarray, codes: np.ndarray) -> list[float | None]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = []
    for level in range(1, codes.shape[1] + 1):
        cosines = [
            unit[i] @ unit[j] for j in range(len(x)) for i in range(j) if (codes[i, :level] == codes[j, :level]).all()
        ]
        means.append(np.mean(cosines) if cosines else None)
    return means


def test_prefix_cohesion_against_every_pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    codes = rng.integers(0, 4, size=(60, 2))
    assert prefix_cohesion(x, codes, seed=0) == pytest.approx(cohesion_by_hand(x, codes), abs=1e-6)


def test_prefix_cohesion_where_nobody_shares():
    x = np.eye(3, dtype=np.float32)
    assert prefix_cohesion(x, np.array([[0, 0], [0, 1], [1, 0]]), seed=0) == [0.0, None]


def test_prefix_cohesion_of_a_sample(monkeypatch):
    """Pairs are drawn evenly from all, so that large groups weigh as they do in the whole."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], [150, 50])[:, None]
    x = np.where(codes == 0, [[1.0, 0.0]], rng.normal(size=(200, 2))).astype(np.float32)
    exact = cohesion_by_hand(x, codes)[0]
    monkeypatch.setattr(figures, "PAIRS", 5000)
    assert prefix_cohesion(x, codes, seed=0)[0] == pytest.approx(exact, abs=0.03)
    assert prefix_cohesion(x, codes, seed=0) == prefix_cohesion(x, codes, seed=0)


@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 3)))
def test_every_pair_once(first):
    left, right = figures._pairs(first[:, None], np.random.default_rng(0))
    expected = {(i, j) for j in range(len(first)) for i in range(j) if first[i] == first[j]}
    assert len(left) == len(expected)
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == expected
