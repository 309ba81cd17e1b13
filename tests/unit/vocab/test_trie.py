"""The trie against brute force over the list of codes."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.vocab.trie import ItemTrie


@st.composite
def catalogues(draw):
    """Codes [N, L], duplicates included, and the level sizes."""
    level_sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    code = st.tuples(*(st.integers(0, size - 1) for size in level_sizes))
    return np.array(draw(st.lists(code, min_size=1, max_size=25))), level_sizes


def prefixes(codes: np.ndarray, level: int) -> dict[tuple[int, ...], list[int]]:
    """Items under each prefix of length `level + 1`, by the prefix; sorted as the trie numbers its nodes."""
    items = defaultdict(list)
    for item, row in enumerate(codes.tolist()):
        items[tuple(row[: level + 1])].append(item)
    return dict(sorted(items.items()))


@given(catalogues())
def test_nodes_are_the_distinct_prefixes(catalogue):
    codes, level_sizes = catalogue
    trie = ItemTrie.build(codes, level_sizes)
    assert trie.levels == len(level_sizes)
    parents: list[tuple[int, ...]] = [()]
    for level in range(trie.levels):
        below = prefixes(codes, level)
        nodes = list(below)
        assert trie.counts[level].tolist() == [len(items) for items in below.values()]
        assert trie.codes(level, torch.arange(len(nodes))).tolist() == [prefix[-1] for prefix in nodes]
        assert [nodes[n] for n in trie.paths[:, level]] == [tuple(row[: level + 1]) for row in codes.tolist()]
        rows, children = trie.children(level, torch.arange(len(parents)))
        expected = [(p, n) for p, parent in enumerate(parents) for n, node in enumerate(nodes) if node[:-1] == parent]
        assert list(zip(rows.tolist(), children.tolist(), strict=True)) == expected
        parents = nodes
    for leaf, items in enumerate(prefixes(codes, trie.levels - 1).values()):
        assert trie.items(leaf).tolist() == items


@given(catalogues())
def test_step_finds_a_node_or_minus_one(catalogue):
    codes, level_sizes = catalogue
    trie = ItemTrie.build(codes, level_sizes)
    parents: list[tuple[int, ...]] = [()]
    for level, size in enumerate(level_sizes):
        nodes = list(prefixes(codes, level))
        asked = [(p, code) for p in range(-1, len(parents)) for code in range(-1, size)]
        wanted = [(*parents[p], code) if p >= 0 else None for p, code in asked]
        found = trie.step(level, *torch.tensor(asked).T)
        assert found.tolist() == [nodes.index(prefix) if prefix in nodes else -1 for prefix in wanted]
        parents = nodes


def test_dead_parents_have_no_children():
    trie = ItemTrie.build(np.array([[0, 1], [2, 0], [2, 3]]), [3, 4])
    rows, nodes = trie.children(1, torch.tensor([-1, 1, -1, 0]))
    assert rows.tolist() == [1, 1, 3]
    assert nodes.tolist() == [1, 2, 0]


@given(catalogues(), st.data())
def test_exhausted_nodes_have_no_item_left(catalogue, data):
    codes, level_sizes = catalogue
    trie = ItemTrie.build(codes, level_sizes)
    some = st.lists(st.integers(0, len(codes) - 1), max_size=30)
    excluded = data.draw(st.lists(some, max_size=4), label="excluded, repeats included")
    exhausted = trie.exhausted([np.array(items, dtype=np.int32) for items in excluded])
    for level in range(trie.levels):
        below = list(prefixes(codes, level).values())
        expected = [
            request * len(below) + node
            for request, gone in enumerate(excluded)
            for node, items in enumerate(below)
            if set(items) <= set(gone)
        ]
        assert exhausted[level].tolist() == expected


def test_keys_of_many_large_levels_fit():
    """Five levels of 100,000 codes: a key is parent * size + code, which stays far below 2**63."""
    codes = np.random.default_rng(0).integers(0, 100_000, (1000, 5))
    trie = ItemTrie.build(codes, [100_000] * 5)
    assert trie.items(int(trie.paths[17, -1])).tolist() == [17]


@pytest.mark.parametrize(
    ("codes", "match"),
    [
        ([[0, 3]], "outside its level"),
        ([[0, -1]], "outside its level"),
        ([[0, 1, 2]], "2 levels"),
        (np.empty((0, 2), int), "expected \\[items, levels\\]"),
        ([0, 1], "expected \\[items, levels\\]"),
    ],
)
def test_invalid_codes_are_refused(codes, match):
    with pytest.raises(UserError, match=match):
        ItemTrie.build(np.array(codes), [2, 3])
