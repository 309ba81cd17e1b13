"""Which search a configuration and a model lead to, and which they must not."""

import numpy as np
import pytest
import torch
from tolerances import SCORES, SUMS

from llmrec.decode.choose import check_decoding, check_fit, find_support, make_exact, make_search
from llmrec.decode.config import DecodeConfig
from llmrec.decode.generate import GenerateSearch
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


@pytest.fixture
def deaf(loud, monkeypatch):
    """`deaf(dims)`: the loud shop, whose model ignores attention masks of more than `dims` dimensions."""
    body = type(loud.model.base_model)
    forward = body.forward

    def make(dims):
        def hears(self, *args, attention_mask=None, **kwargs):
            heard = attention_mask if attention_mask is not None and attention_mask.dim() <= dims else None
            return forward(self, *args, attention_mask=heard, **kwargs)

        monkeypatch.setattr(body, "forward", hears)
        return loud

    return make


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_model_with_tree_masks_gets_the_tree(loud, weights):
    search = make_search(loud.model.to(weights), loud.vocabulary, loud.trie, DecodeConfig())
    assert isinstance(search, TreeSearch)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_tree_masks_falls_back_and_says_so(deaf, caplog, weights):
    shop = deaf(2)
    shop.model.to(weights)
    with caplog.at_level("WARNING", logger="llmrec"):
        search = make_search(shop.model, shop.vocabulary, shop.trie, DecodeConfig())
    assert isinstance(search, GenerateSearch)
    assert search.prefills
    assert "no tree attention mask (its log-probabilities differ by" in caplog.text
    for settings, said in ({"scoring": "level"}, "scoring level"), ({"ranking": "specgr"}, "ranking specgr"):
        with pytest.raises(UserError, match=rf"decode\.{said}.* no tree attention mask"):
            check_decoding(shop.model, shop.vocabulary, shop.trie, DecodeConfig(**settings))


def test_a_model_that_ignores_all_masks_is_refused(deaf):
    """Padding would change its answers."""
    shop = deaf(0)
    with pytest.raises(UserError, match=r"^base\.model: Qwen3ForCausalLM can't be decoded: .* choose another model\.$"):
        make_search(shop.model, shop.vocabulary, shop.trie, DecodeConfig())


def test_a_cache_that_cannot_be_made_by_hand_is_left_to_generate(deaf, monkeypatch):
    def refuse(**_):
        raise TypeError("another cache")

    shop = deaf(2)
    monkeypatch.setattr("llmrec.decode.generate.DynamicCache", refuse)
    support = find_support(shop.model, shop.vocabulary, shop.trie, 0)
    assert not support.prefills
    search = make_search(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32"))
    monkeypatch.undo()
    tree = TreeSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(dtype="float32", scoring="vocab"))
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    np.testing.assert_allclose(search.search(prompts, 5).scores, tree.search(prompts, 5).scores, atol=SCORES)


def test_rounding_of_a_deep_model_in_bfloat16_is_no_reason_for_generate():
    """40 random layers: the plain log-probabilities themselves differ by more than .3 from those in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=500, num_hidden_layers=40, head_dim=16, **shape)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        exact = model(ids).logits.log_softmax(-1)
        rough = model.bfloat16()(ids).logits.float().log_softmax(-1)
    assert (exact - rough).abs().max() > 0.3
    vocabulary = ItemVocabulary([["a", "b"], ["c", "d"]], [np.array([490, 491]), np.array([492, 493])])
    trie = ItemTrie.build(np.array([[0, 0], [1, 1]]), [2, 2])
    assert find_support(model, vocabulary, trie, 0).no_tree is None


def test_the_trial_leaves_the_model_as_it_was(loud):
    loud.model.train()
    before = [parameter.data_ptr() for parameter in loud.model.parameters()]
    find_support(loud.model, loud.vocabulary, loud.trie, 0)
    assert loud.model.training
    assert [parameter.data_ptr() for parameter in loud.model.parameters()] == before
    assert not any(module._forward_hooks for module in loud.model.modules())


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
