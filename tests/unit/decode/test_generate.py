"""The logits processor against a check of every prefix by hand."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmrec.decode.filters import Filter, Restriction
from llmrec.decode.generate import TrieConstraint
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary

FIRST, WIDTH, PROMPT = 7, 40, 3


@st.composite
def moments(draw):
    """A catalogue, exclusions of each of 2 requests, and 2 x 3 beams that have each spelt `level` tokens."""
    level_sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    code = st.tuples(*(st.integers(0, size - 1) for size in level_sizes))
    codes = draw(st.lists(code, min_size=1, max_size=15))
    level = draw(st.integers(0, len(level_sizes) - 1))
    excluded = None
    if draw(st.booleans()):
        excluded = [sorted(draw(st.sets(st.integers(0, len(codes) - 1)))) for _ in range(2)]
    real = st.sampled_from(codes).map(lambda row: list(row[:level]))
    # "garbage": codes of no item, or -1 for a token that is no item token at all
    garbage = st.lists(st.integers(-1, 4), min_size=level, max_size=level)
    beams = draw(st.lists(real | garbage, min_size=6, max_size=6))
    return level_sizes, codes, level, excluded, beams


@given(moments())
def test_allowed_tokens_are_those_of_the_remaining_items(moment):
    level_sizes, codes, level, excluded, beams = moment
    starts = FIRST + np.concatenate([[0], np.cumsum(level_sizes)])
    ids = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
    vocabulary = ItemVocabulary([[f"{t}" for t in level_ids] for level_ids in ids], ids)

    def token(at: int, code: int) -> int:
        return int(ids[at][code]) if 0 <= code < level_sizes[at] else 1

    trie = ItemTrie.build(np.array(codes), level_sizes)
    gone = excluded and Restriction(trie, [Filter(excluded=np.array(items, dtype=np.int64)) for items in excluded])
    constraint = TrieConstraint(trie, vocabulary, PROMPT, beams=3, restriction=gone)
    spelt = [[token(at, code) for at, code in enumerate(beam)] for beam in beams]
    input_ids = torch.tensor([[FIRST, 0, FIRST + 1, *tokens] for tokens in spelt])
    scores = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    constrained = constraint(input_ids, scores)

    for row, tokens in enumerate(spelt):
        banned = [] if excluded is None else excluded[row // 3]
        allowed = {
            token(level, code[level])
            for item, code in enumerate(codes)
            if item not in banned and [token(at, c) for at, c in enumerate(code[:level])] == tokens
        }
        kept = torch.isfinite(constrained[row]).nonzero().flatten().tolist()
        assert kept == sorted(allowed)
        assert torch.equal(constrained[row, kept], scores[row, kept])
        assert torch.isneginf(constrained[row]).sum() == WIDTH - len(kept)


def test_nodes_of_whole_ids_are_leaves():
    codes = np.array([[1, 0], [0, 2], [1, 0]])
    ids = [np.array([10, 11]), np.array([12, 13, 14])]
    vocabulary = ItemVocabulary([["a", "b"], ["c", "d", "e"]], ids)
    constraint = TrieConstraint(ItemTrie.build(codes, [2, 3]), vocabulary, 1, beams=1)
    sequences = torch.tensor([[5, 10, 14], [5, 11, 12], [5, 11, 13], [5, 14, 10]])
    assert constraint.nodes(sequences).tolist() == [0, 1, -1, -1]
