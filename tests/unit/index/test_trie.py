"""The trie against brute force over the list of codes."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie


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
        assert trie.counts(level, torch.arange(len(nodes))).tolist() == [len(items) for items in below.values()]
        assert trie.codes(level, torch.arange(len(nodes))).tolist() == [prefix[-1] for prefix in nodes]
        path = trie.paths(torch.arange(len(codes)))[level]
        assert [nodes[n] for n in path] == [tuple(row[: level + 1]) for row in codes.tolist()]
        rows, children = trie.children(level, torch.arange(len(parents)))
        expected = [(p, n) for p, parent in enumerate(parents) for n, node in enumerate(nodes) if node[:-1] == parent]
        assert list(zip(rows.tolist(), children.tolist(), strict=True)) == expected
        parents = nodes
    for leaf, items in enumerate(prefixes(codes, trie.levels - 1).values()):
        assert trie.items_of(leaf).tolist() == items


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


def test_keys_of_many_large_levels_fit():
    """Five levels of 100,000 codes, whose product is beyond 63 bits."""
    codes = np.random.default_rng(0).integers(0, 100_000, (1000, 5))
    trie = ItemTrie.build(codes, [100_000] * 5)
    assert trie.items_of(int(trie.leaves[17])).tolist() == [17]
    assert codes[trie.order].tolist() == sorted(codes.tolist())


@given(catalogues())
def test_saved_and_loaded(tmp_path_factory, catalogue):
    trie = ItemTrie.build(*catalogue)
    path = tmp_path_factory.mktemp("trie") / "trie.safetensors"
    trie.save(path)
    again = ItemTrie.load(path)
    assert again.level_sizes == trie.level_sizes
    for name, tensor in trie._tensors().items():
        assert torch.equal(again._tensors()[name], tensor)


@given(catalogues(), st.data())
def test_spells_its_own_codes_only(catalogue, data):
    codes, level_sizes = catalogue
    trie = ItemTrie.build(codes, level_sizes)
    assert trie.matches_codes(codes)
    other = codes.copy()
    row = data.draw(st.integers(0, len(codes) - 1))
    level = data.draw(st.integers(0, len(level_sizes) - 1))
    other[row, level] = (other[row, level] + data.draw(st.integers(1, 6))) % 7
    assert not trie.matches_codes(other) or (other == codes).all()
    assert not trie.matches_codes(np.append(codes, codes[:1], axis=0))


def same(one: ItemTrie, other: ItemTrie) -> bool:
    """Whether all arrays are equal."""
    arrays = other._tensors()
    return all(torch.equal(array, arrays[name]) for name, array in one._tensors().items())


@given(catalogues(), st.data())
def test_items_added_are_as_if_they_had_always_been_there(catalogue, data):
    codes, level_sizes = catalogue
    cut = data.draw(st.integers(1, len(codes)))
    trie = ItemTrie.build(codes[:cut], level_sizes)
    assert cut == len(codes) or same(trie.with_items(codes[cut:]), ItemTrie.build(codes, level_sizes))


@given(catalogues(), st.data())
def test_items_removed_are_as_if_they_had_never_been_there(catalogue, data):
    """But the others keep their rows, and what comes later gets rows of its own."""
    codes, level_sizes = catalogue
    removed = sorted(data.draw(st.sets(st.integers(0, len(codes) - 1), max_size=len(codes) - 1)))
    kept = np.setdiff1d(np.arange(len(codes)), removed)
    trie = ItemTrie.build(codes, level_sizes).without_items(np.array(removed, int))
    assert trie.n_items == len(codes)
    assert (trie.leaves[removed] == -1).all()
    rebuilt = ItemTrie.build(codes[kept], level_sizes)
    renumbered = replace(rebuilt, order=torch.from_numpy(kept)[rebuilt.order].int(), leaves=trie.leaves)
    assert torch.equal(trie.leaves[kept], rebuilt.leaves)
    assert same(trie, renumbered)
    back = trie.with_items(codes[removed]) if removed else trie
    assert len(back.order) == len(codes)
    assert [back.items_of(int(back.leaves[len(codes) + at])).tolist()[-1] for at in range(len(removed))] == [
        max(len(codes) + n for n, row in enumerate(removed) if (codes[row] == codes[mine]).all()) for mine in removed
    ]


def test_what_can_not_be_removed_or_added():
    trie = ItemTrie.build(np.array([[0, 1], [1, 0]]), [2, 3])
    with pytest.raises(UserError, match="would leave none"):
        trie.without_items(np.arange(2))
    with pytest.raises(UserError, match="rows -1 to 2 of a catalogue of 2"):
        trie.without_items(np.array([2, -1]))
    with pytest.raises(UserError, match="outside its level"):
        trie.with_items(np.array([[0, 3]]))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
def test_loading_reads_only_what_is_looked_at(tmp_path):
    """Of 30 MB, a walk down the trie touches next to nothing."""
    trie = ItemTrie.build(np.random.default_rng(0).integers(0, 256, (1_000_000, 4)), [256] * 4)
    trie.save(tmp_path / "trie.safetensors")
    expected = trie.children(1, torch.tensor([7]))[1]
    before = resident()
    loaded = ItemTrie.load(tmp_path / "trie.safetensors")
    assert torch.equal(loaded.children(1, torch.tensor([7]))[1], expected)
    assert resident() - before < trie.nbytes / 5
    assert int(loaded.order.sum()) == sum(range(1_000_000))
    assert resident() - before > trie.nbytes / 20  # so it would have shown


def resident() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_bytes_of_many_items():
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 4))
    assert ItemTrie.build(codes, [256] * 4).nbytes < 50 * len(codes)


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
