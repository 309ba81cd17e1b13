"""Filters on the trie against a look at every item."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.filters import Filter, Restriction
from llmrec.index.trie import ItemTrie


@st.composite
def situations(draw):
    """Codes [N, L] with their level sizes, and 1 to 4 filters as (allowed or None, excluded)."""
    level_sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    code = st.tuples(*(st.integers(0, size - 1) for size in level_sizes))
    codes = np.array(draw(st.lists(code, min_size=1, max_size=20)))
    rows = st.lists(st.integers(0, len(codes) - 1), max_size=25)
    filters = draw(st.lists(st.tuples(st.none() | rows, rows), min_size=1, max_size=4))
    return codes, level_sizes, filters


def as_rows(rows: list[int] | None) -> np.ndarray | None:
    return None if rows is None else np.array(rows, np.int32)


@settings(deadline=None)
@given(situations())
def test_children_are_the_prefixes_of_items_that_may_come_out(situation):
    codes, level_sizes, filters = situation
    trie = ItemTrie.build(codes, level_sizes)
    restriction = Restriction(trie, [Filter(as_rows(allowed), as_rows(excluded)) for allowed, excluded in filters])
    paths = torch.stack(trie.paths(torch.arange(len(codes))), dim=1).tolist()
    for level in range(trie.levels):
        width = 1 if level == 0 else len(trie.node_codes[level - 1])
        asked = [(request, parent) for request in range(len(filters)) for parent in range(-1, width)]
        rows, nodes = restriction.children(level, *torch.tensor(asked).T)
        expected = set()
        for row, (request, parent) in enumerate(asked):
            allowed, excluded = filters[request]
            for item, path in enumerate(paths):
                below = parent == (path[level - 1] if level else 0)
                if below and (allowed is None or item in allowed) and item not in excluded:
                    expected.add((row, path[level]))
        found = list(zip(rows.tolist(), nodes.tolist(), strict=True))
        assert len(found) == len(set(found))
        assert set(found) == expected


@settings(deadline=None)
@given(situations())
def test_items_that_a_filter_lets_through(situation):
    codes, _, filters = situation
    items = np.arange(len(codes))
    for allowed, excluded in filters:
        allows = Filter(as_rows(allowed), as_rows(excluded)).normal().allows(items)
        assert allows.tolist() == [(allowed is None or item in allowed) and item not in excluded for item in items]


@pytest.mark.parametrize("share", [0, 0.2, 0.8, 1])
def test_a_mask_becomes_the_shorter_list(share):
    mask = np.random.default_rng(0).random(50) < share
    made = Filter.of_mask(mask)
    np.testing.assert_array_equal(made.normal().allows(np.arange(50)), mask)
    lists = [rows for rows in (made.allowed, made.excluded) if rows is not None]
    assert [len(rows) for rows in lists] == [min(mask.sum(), 50 - mask.sum())]


def test_removed_items_are_no_ones_children():
    trie = ItemTrie.build(np.array([[0, 1], [2, 0], [2, 1]]), [3, 2]).without_items(np.array([1]))
    restriction = Restriction(trie, [Filter(allowed=np.array([0, 1])), Filter(excluded=np.array([1, 2]))])
    for request in range(2):
        rows, nodes = restriction.children(0, torch.tensor([request]), torch.tensor([0]))
        assert trie.codes(0, nodes).tolist() == [0]
        assert rows.tolist() == [0]
