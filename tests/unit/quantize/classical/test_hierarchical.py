import numpy as np
import pytest

from llmrec.quantize import TokenizeConfig
from llmrec.quantize.classical.hierarchical import HierarchicalKMeans


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)


def fit(x: np.ndarray, **settings) -> HierarchicalKMeans:
    return HierarchicalKMeans(TokenizeConfig("hierarchical-kmeans", **{"codes": 4, "iterations": 10, **settings})).fit(
        x
    )


def prefixes(codes: np.ndarray, depth: int) -> np.ndarray:
    return np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].ravel()


@pytest.mark.parametrize("balanced", [False, True])
def test_paths_are_unique_while_the_tree_has_room(x, balanced):
    """Levels enough for the largest subtree to come apart: each item its own leaf, and no error."""
    quantizer = fit(x, levels=8 if not balanced else 4, balanced=balanced)
    codes = quantizer.assign(x)
    assert len(np.unique(codes, axis=0)) == len(x)
    np.testing.assert_allclose(quantizer.decode(codes), x, atol=1e-6)


def test_an_equal_prefix_is_the_same_subtree(x):
    """Each item's prefix names one node, whose centroid is the nearest among its siblings', and nobody else's."""
    quantizer = fit(x)
    codes = quantizer.encode(x)
    for depth in (1, 2, 3):
        partial = fit(x, levels=depth)
        np.testing.assert_array_equal(partial.encode(x), codes[:, :depth])
        centres = partial.decode(codes[:, :depth])
        node = prefixes(codes, depth)
        for item in range(len(x)):
            siblings = (
                np.flatnonzero(prefixes(codes, depth - 1) == prefixes(codes, depth - 1)[item])
                if depth > 1
                else slice(None)
            )
            distances = ((centres[siblings] - x[item]) ** 2).sum(1)
            assert np.isclose(distances.min(), ((centres[item] - x[item]) ** 2).sum(), atol=1e-5)
        assert len(np.unique(centres, axis=0)) == node.max() + 1


@pytest.mark.parametrize("rows", [150, 128, 67])
def test_balanced_subtrees_differ_by_at_most_one_item(x, rows):
    codes = fit(x[:rows], balanced=True).assign(x[:rows])
    for depth in (1, 2, 3):
        sizes = np.bincount(prefixes(codes, depth))
        assert sizes.max() - sizes.min() <= 1
    assert len(np.unique(codes[:, 0])) == 4


@pytest.mark.parametrize("codes", [[2, 3, 5], [8, 2, 2]])
def test_levels_of_their_own_sizes(x, codes):
    found = fit(x, codes=codes).encode(x)
    np.testing.assert_array_equal(found.max(0), np.array(codes) - 1)


def test_error_does_not_rise_with_levels(x):
    errors = [((q.decode(q.encode(x)) - x) ** 2).sum() for q in (fit(x, levels=levels) for levels in (1, 2, 3, 4))]
    assert errors == sorted(errors, reverse=True)


def test_few_distinct_rows_have_a_child_each_at_once():
    points = np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    x = np.repeat(points, 4, axis=0)
    quantizer = fit(x, levels=2, codes=[5, 3])
    codes = quantizer.encode(x)
    np.testing.assert_array_equal(np.unique(codes, axis=0).shape, (5, 2))
    assert (codes[:, 1] == 0).all()
    np.testing.assert_array_equal(quantizer.decode(codes), x)


def test_a_path_that_leaves_the_tree_ends_at_its_last_node():
    x = np.array([[0, 0], [0, 1], [9, 9]], np.float32)
    quantizer = fit(x, levels=2, codes=2)
    far = quantizer.encode(x[2:])[0]
    np.testing.assert_array_equal(quantizer.decode(np.array([[far[0], 1]])), [[9, 9]])
    near = 1 - far[0]
    assert {tuple(row) for row in quantizer.decode(np.array([[near, 0], [near, 1]])).tolist()} == {(0, 0), (0, 1)}


def test_unseen_items_descend_by_the_nearest_child(x):
    quantizer = fit(x)
    unseen = np.random.default_rng(9).normal(size=(20, 6)).astype(np.float32)
    codes = quantizer.encode(unseen)
    for depth in range(3):
        known = {tuple(path) for path in quantizer.encode(x)[:, : depth + 1].tolist()}
        for item, path in zip(unseen, codes, strict=True):
            paths = [[*path[:depth], code] for code in range(4) if (*path[:depth], code) in known]
            if paths:
                centres = fit(x, levels=depth + 1).decode(np.array(paths))
                assert paths[((centres - item) ** 2).sum(1).argmin()][-1] == path[depth]


def test_without_balance_assign_is_encode(x):
    quantizer = fit(x)
    np.testing.assert_array_equal(quantizer.assign(x), quantizer.encode(x))
