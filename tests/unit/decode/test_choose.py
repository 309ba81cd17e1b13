"""Which search a configuration and a model lead to, and which they must not."""

import numpy as np
import pytest
import torch
from tolerances import SCORES, SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch, check_fit, make_exact, make_search
from llmrec.decode.search import NotNumbersError
from llmrec.decode.tree import ExactSearch, TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie
from llmrec.model.tokens import ItemVocabulary


@pytest.mark.parametrize(
    ("kind", "settings", "scoring"),
    [
        (TreeSearch, {}, "catalogue"),
        (TreeSearch, {"constraint": "level"}, "vocab"),
        (TreeSearch, {"constraint": "none"}, "vocab"),
        (TreeSearch, {"scoring": "level"}, "level"),
        (ExactSearch, {}, "catalogue"),
        (GenerateSearch, {}, "vocab"),
    ],
)
def test_what_scoring_auto_is(shop, kind, settings, scoring):
    asked = DecodeConfig(dtype="float32", **settings)
    assert kind(shop.model, shop.vocabulary, shop.trie, asked).config.scoring == scoring
    assert asked.scoring == settings.get("scoring", "auto"), "the caller's configuration is left alone"


def test_auto_scores_as_catalogue_does(shop):
    rankings = [
        make_search(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32", scoring=scoring)).search(
            [[5, 6, 7]], 20
        )
        for scoring in ("auto", "catalogue")
    ]
    np.testing.assert_array_equal(rankings[0].items, rankings[1].items)
    assert np.exp(rankings[0].scores).sum() == pytest.approx(1, abs=SCORES)


def test_exact_goes_over_the_same_model_and_catalogue(shop):
    config = DecodeConfig(dtype="float32", beams=3, scoring="level")
    search = make_search(shop.model, shop.vocabulary, shop.trie, config)
    exact = make_exact(search)
    assert exact.config == search.config
    whole, best = search.search([[5, 6, 7]], 20), exact.search([[5, 6, 7]], 4)
    assert best.items[0].tolist() == whole.items[0, :4].tolist()
    np.testing.assert_allclose(best.scores, whole.scores[:, :4], atol=SUMS)


def test_weights_that_are_not_numbers_are_no_reason_for_generate(shop):
    """The trial can't tell, so the search must say it: falling back would hide the level."""
    with torch.no_grad():
        shop.model.get_output_embeddings().weight[:] = torch.nan
    search = make_search(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
    assert isinstance(search, TreeSearch)
    with pytest.raises(NotNumbersError, match="level 1 of 2"):
        search.search([[5, 6, 7]], 3)


def test_exact_needs_the_tree_and_the_trie(shop):
    config = DecodeConfig(dtype="float32")
    with pytest.raises(UserError, match=r"exact: .* leave it out"):
        make_exact(GenerateSearch(shop.model, shop.vocabulary, shop.trie, config))
    with pytest.raises(UserError, match=r"exact .* decode\.constraint level .* use trie"):
        make_exact(TreeSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(constraint="level")))


def test_offsets_need_the_tree(shop):
    search = GenerateSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
    with pytest.raises(UserError, match="offsets"):
        search.search([[5, 6, 7]], 3, offsets=np.zeros(20))


def test_item_tokens_beyond_the_model_are_refused(shop):
    ids = [np.array(level) for level in shop.vocabulary.ids]
    ids[-1] = ids[-1] + 1000
    with pytest.raises(UserError, match="model has rows for"):
        check_fit(shop.model, ItemVocabulary(shop.vocabulary.names, ids), shop.trie)


def test_a_trie_of_other_levels_is_refused(shop):
    with pytest.raises(UserError, match="belong to different tokenizers"):
        make_search(shop.model, shop.vocabulary, ItemTrie.build(np.zeros((1, 2), int), [4, 6]), DecodeConfig())
