"""What every search owes its caller, whichever model it drives: widths, offsets, scores that are not numbers."""

import numpy as np
import pytest
import torch

from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter
from llmrec.decode.generate import GenerateSearch
from llmrec.decode.search import NotNumbersError, Offsets
from llmrec.decode.tree import TreeSearch
from llmrec.index.trie import ItemTrie


@pytest.fixture(params=[TreeSearch, GenerateSearch])
def search(shop, request):
    return request.param(shop.model, shop.vocabulary, shop.trie, DecodeConfig(beams=3, dtype="float32"))


@pytest.mark.parametrize(("k", "beams", "width"), [(1, None, 3), (7, None, 7), (2, 9, 9), (50, 4, 20)])
def test_fewer_beams_than_answers_are_widened(search, k, beams, width):
    ranking = search.search([[5, 6, 7], [8]], k, beams=beams)
    assert ranking.width == width
    assert ((ranking.items >= 0).sum(axis=1) == min(k, 20)).all()


def test_k_beyond_what_is_allowed_gives_what_exists(search):
    ranking = search.search([[5, 6, 7]], 6, [Filter(allowed=np.array([3, 9]))])
    assert sorted(ranking.items[0]) == [-1, -1, -1, -1, 3, 9]


def test_scores_that_are_not_numbers_name_the_level(shop, search):
    """A hidden state that is NaN from the second level on."""
    bad = int(shop.vocabulary.ids[0][0])
    for parameter in [search.model.get_input_embeddings().weight]:
        with torch.no_grad():
            parameter[bad] = torch.nan
    with pytest.raises(NotNumbersError, match=r"scores at level . of 2 are not numbers"):
        search.search([[5, 6, 7]], 20)


def test_bounds_are_the_largest_offset_below():
    trie = ItemTrie.build(np.array([[0, 1], [0, 2], [1, 0], [0, 1]]), [2, 3])
    offsets = Offsets(trie, np.array([1, -5, -7, 3]))
    assert [bound.tolist() for bound in offsets.bounds] == [[3, -7], [3, -5, -7]]


@pytest.mark.parametrize("wrong", [np.zeros(3), np.array([0, np.nan, 0, 0]), np.array([0, np.inf, 0, 0])])
def test_offsets_that_are_not_one_finite_number_each_are_refused(wrong):
    trie = ItemTrie.build(np.arange(4)[:, None], [4])
    with pytest.raises(ValueError, match="expected 4 finite numbers"):
        Offsets(trie, wrong)
