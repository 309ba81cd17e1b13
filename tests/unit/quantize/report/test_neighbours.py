import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.quantize.report import figures as neighbours
from llmrec.quantize.report import figures as rows
from llmrec.quantize.report.figures import jaccard, nearest, rank_biased_overlap


def random(items: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, 8)).astype(np.float32)


def brute_force(x: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit[queries] @ unit.T
    cosine[np.arange(len(queries)), queries] = -2
    return np.argsort(-cosine, axis=1)[:, :k]


@pytest.mark.parametrize("block", [7, 100, 10_000])
def test_against_brute_force_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(rows, "BLOCK", block)
    x, queries = random(300), np.array([0, 3, 150, 299])
    np.testing.assert_array_equal(nearest(x, queries), brute_force(x, queries, 20))


@pytest.mark.parametrize("items", [1, 2, 15])
def test_fewer_items_than_neighbours(items):
    x = random(items)
    found = nearest(x, np.arange(items))
    assert found.shape == (items, items - 1)
    assert [jaccard(found, found), rank_biased_overlap(found, found)] == pytest.approx([1, 1])


def test_an_item_is_not_its_own_neighbour_even_among_equals():
    x, queries = np.ones((100, 8), np.float32), np.arange(100)
    found = nearest(x, queries)
    assert found.shape == (100, 20)
    assert (found != queries[:, None]).all()


def test_length_does_not_matter():
    x, queries = random(300), np.arange(300)
    before, after = nearest(x, queries), nearest(3 * x, queries)
    assert [jaccard(before, after), rank_biased_overlap(before, after)] == pytest.approx([1, 1])


def test_neighbours_by_hand():
    """Directions on a circle, where even rows turn to the other side: neighbours of the same parity stay."""
    angle = np.arange(100) * 2 * np.pi / 100
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    turned = x * np.where(np.arange(100) % 2, 1, -1)[:, None].astype(np.float32)
    queries = np.arange(100)
    # 10 on either side, of which 5 on either side share the row's parity
    assert jaccard(nearest(x, queries), nearest(turned, queries)) == pytest.approx(10 / 30)


def test_unrelated_vectors_share_neighbours_by_chance_only():
    queries = np.arange(1500)
    assert jaccard(nearest(random(1500), queries), nearest(random(1500, seed=1), queries)) < 0.02


def test_rank_biased_overlap_by_hand():
    """Agreement at depths 1, 2, 3 is 0, 1, 2/3; p = .5: .5^3 * 2/3 + 1 * (0 * .5 + 1 * .25 + 2/3 * .125)."""
    before, after = np.array([[1, 2, 3]]), np.array([[2, 1, 4]])
    assert rank_biased_overlap(before, after, p=0.5) == pytest.approx(0.125 * 2 / 3 + 0.25 + 0.125 * 2 / 3)
    assert rank_biased_overlap(before, before, p=0.5) == pytest.approx(1)
    assert rank_biased_overlap(before, np.array([[4, 5, 6]]), p=0.5) == 0


def test_rank_biased_overlap_heeds_the_order_and_jaccard_does_not():
    before = np.arange(20)[None]
    late, early = before.copy(), before.copy()
    late[0, [18, 19]] = 19, 18
    early[0, [0, 1]] = 1, 0
    assert 1 > rank_biased_overlap(before, late) > rank_biased_overlap(before, early)
    assert jaccard(before, early) == 1


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_overlaps_by_sets(left, right):
    before, after = np.array([left[:5]]), np.array([right[:5]])
    by_sets = [len({*left[:depth]} & {*right[:depth]}) for depth in range(1, 6)]
    assert neighbours._overlaps(before, after)[0].tolist() == by_sets
