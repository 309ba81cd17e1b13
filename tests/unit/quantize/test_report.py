import numpy as np
import pytest

from llmrec.quantize.report import _neighbours, code_figures, distortion, neighbour_jaccard


def test_even_use_and_no_collision():
    codes = np.stack(np.meshgrid(np.arange(4), np.arange(8)), -1).reshape(-1, 2)
    figures = code_figures(codes, [4, 8])
    assert figures["usage"] == [1.0, 1.0]
    assert figures["perplexity"] == pytest.approx([4, 8])
    assert (figures["collision_rate"], figures["max_collision"]) == (0, 1)
    assert figures["collision_groups"] == {"1": 32}


def test_a_single_code():
    figures = code_figures(np.zeros((10, 1), np.int32), [4])
    assert (figures["usage"], figures["perplexity"]) == ([0.25], [1.0])
    assert (figures["collision_rate"], figures["max_collision"]) == (0.9, 10)


def test_collision_rate_counts_items_beyond_the_distinct_tuples():
    codes = np.array([[0], [0], [0], [1], [1], [2], [3], [4]])
    figures = code_figures(codes, [5])
    assert figures["collision_rate"] == pytest.approx(3 / 8)
    assert figures["collision_groups"] == {"1": 3, "2": 1, "3": 1}


def test_distortion_is_relative_to_the_variance():
    x = np.random.default_rng(0).normal(size=(50, 4)) * 7 + 3
    assert distortion(x, x) == 0
    assert distortion(x, np.broadcast_to(x.mean(0), x.shape)) == pytest.approx(1)


@pytest.mark.parametrize("items", [2, 15, 300, 1500])
def test_the_same_vectors_have_the_same_neighbours(items):
    x = np.random.default_rng(0).normal(size=(items, 8)).astype(np.float32)
    assert neighbour_jaccard(x, 3 * x, seed=0) == 1


def test_unrelated_vectors_share_neighbours_by_chance_only():
    x, other = np.random.default_rng(0).normal(size=(2, 1500, 8)).astype(np.float32)
    assert neighbour_jaccard(x, other, seed=0) < 0.02


def test_neighbours_by_hand():
    """Directions on a circle, where even rows turn to the other side: neighbours of the same parity stay."""
    angle = np.arange(100) * 2 * np.pi / 100
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    turned = x * np.where(np.arange(100) % 2, 1, -1)[:, None].astype(np.float32)
    # 10 on either side, of which 5 on either side share the row's parity
    assert neighbour_jaccard(x, turned, seed=0) == pytest.approx(10 / 30)


def test_an_item_is_not_its_own_neighbour_even_among_equals():
    x, queries = np.ones((100, 8), np.float32), np.arange(100)
    neighbours = _neighbours(x, queries)
    assert neighbours.shape == (100, 20)
    assert (neighbours != queries[:, None]).all()
