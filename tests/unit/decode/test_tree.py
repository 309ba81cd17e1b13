"""The tree search on a tiny model: scorings, constraints, offsets, and models it must refuse."""

import numpy as np
import pytest
import torch
from tolerances import DENSE, SCORES, SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.exact import ExactSearch
from llmrec.decode.filters import Filter
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError
from llmrec.index.trie import ItemTrie

PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8]]


def tree(shop, **settings) -> TreeSearch:
    config = DecodeConfig(dtype="float32", device="cpu", **settings)
    return TreeSearch(shop.model, shop.vocabulary, shop.trie, config)


@torch.inference_mode()
def by_hand(shop, prompt, scoring) -> np.ndarray:
    """float64 [N]: every item's score, token by token, from the model's full logits."""
    scores = np.zeros(len(shop.codes))
    for item, codes in enumerate(shop.codes):
        ids = list(prompt)
        for level, code in enumerate(codes):
            logits = shop.model(torch.tensor([ids])).logits[0, -1].double()
            tokens = shop.vocabulary.ids[level]
            if scoring == "catalogue":
                same = (shop.codes[:, :level] == codes[:level]).all(axis=1)
                tokens = tokens[np.unique(shop.codes[same, level])]
            among = logits if scoring == "vocab" else logits[torch.from_numpy(tokens)]
            scores[item] += float(logits[shop.vocabulary.ids[level][code]] - among.logsumexp(0))
            ids.append(int(shop.vocabulary.ids[level][code]))
    return scores


@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
def test_scorings_by_hand(loud, scoring):
    ranking = tree(loud, scoring=scoring).search(PROMPTS, k=20)
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        expected = by_hand(loud, prompt, scoring)
        np.testing.assert_allclose(scores, expected[items], atol=SCORES)
        assert sorted(items) == list(range(20))
        if scoring == "catalogue":
            assert np.exp(expected).sum() == pytest.approx(1)


def test_catalogue_scoring_runs_no_prefix_that_only_one_item_continues(loud, monkeypatch):
    """Three items with codes of their own on the first level: the prompt is all that is run."""
    trie = ItemTrie.build(np.array([[0, 1], [2, 0], [3, 3]]), [4, 5])
    search = TreeSearch(loud.model, loud.vocabulary, trie, DecodeConfig(dtype="float32", scoring="catalogue"))
    runs = []
    body = search.model.base_model
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda *args, **kwargs: runs.append(1) or forward(*args, **kwargs))
    ranking = search.search(PROMPTS, k=3)
    assert len(runs) == 1
    np.testing.assert_allclose(np.exp(ranking.scores).sum(axis=1), 1, atol=SUMS)


@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
def test_filters_do_not_change_scores(loud, scoring):
    search = tree(loud, scoring=scoring)
    whole = search.search(PROMPTS, k=20)
    filters = [Filter(allowed=np.array([3, 19, 4, 5])), Filter(excluded=np.arange(15)), Filter()]
    for row, ranking in enumerate(search.search(PROMPTS, k=20, filters=filters).items):
        keep = filters[row].normal().allows(whole.items[row])
        assert ranking[ranking >= 0].tolist() == whole.items[row][keep].tolist()


def test_a_filter_that_lets_nothing_through_gives_nothing(loud):
    ranking = tree(loud).search(PROMPTS, k=3, filters=[Filter(allowed=np.empty(0, np.int64))] * 3)
    assert (ranking.items == -1).all()
    assert np.isneginf(ranking.scores).all()


@pytest.mark.parametrize("beams", [3, 20])
def test_offsets_are_added_and_searched_for(loud, beams):
    """The item with a large offset comes first, however unlikely the model finds it."""
    whole = tree(loud).search(PROMPTS, k=20)
    offsets = np.zeros(20, np.float32)
    last = int(whole.items[0, -1])
    offsets[last] = 100
    ranking = tree(loud, beams=beams).search(PROMPTS, k=3, offsets=offsets)
    assert (ranking.items[:, 0] == last).all()
    assert ranking.scores[0, 0] == pytest.approx(whole.scores[0, -1] + 100, abs=DENSE)
    assert ranking.items[0, 1] == whole.items[0, 0] or beams == 3


@pytest.mark.parametrize("scoring", ["vocab", "level", "catalogue"])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_exact_search_equals_the_whole_catalogue(loud, scoring, with_offsets):
    """One prefix at a time, under a filter: the best of all items, scored by hand."""
    offsets = np.random.default_rng(0).normal(size=20).astype(np.float32) if with_offsets else None
    config = DecodeConfig(dtype="float32", scoring=scoring, beams=1)
    search = ExactSearch(loud.model, loud.vocabulary, loud.trie, config)
    filters = [Filter(excluded=np.array([1, 5, 9]))] * 3
    ranking = search.search(PROMPTS, k=6, filters=filters, offsets=offsets)
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        expected = by_hand(loud, prompt, scoring) + (0 if offsets is None else offsets)
        expected[[1, 5, 9]] = -np.inf
        assert items.tolist() == np.argsort(-expected, kind="stable")[:6].tolist()
        np.testing.assert_allclose(scores, expected[items], atol=SCORES)


def test_exact_search_leaves_out_what_cannot_win(loud, monkeypatch):
    """The bound must spare it most of the catalogue, or it is no search."""
    config = DecodeConfig(dtype="float32", scoring="level", beams=1)
    search = ExactSearch(loud.model, loud.vocabulary, loud.trie, config)
    search.head._rows = [6 * rows for rows in search.head._rows]  # firm opinions
    ran = []
    forward = search.model.base_model.forward

    def counted(*args, input_ids, **kwargs):
        ran.append(input_ids.shape[1])
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(search.model.base_model, "forward", counted)
    search.search(PROMPTS[:1], k=1)
    assert 2 <= len(ran) < 1 + 4  # the prompt, and fewer than all 4 codes of the first level


def test_offsets_of_another_length_are_refused(loud):
    with pytest.raises(ValueError, match="expected 20 finite numbers"):
        tree(loud).search(PROMPTS, k=3, offsets=np.zeros(19))


@pytest.mark.parametrize("constraint", ["level", "none"])
def test_without_the_trie_some_beams_spell_no_item(loud, constraint):
    """Half of the codes' combinations are no item's; the valid answers keep their scores."""
    trie = ItemTrie.build(loud.codes[::2], [4, 5])
    config = DecodeConfig(dtype="float32", constraint=constraint, beams=12)
    ranking = TreeSearch(loud.model, loud.vocabulary, trie, config).search(PROMPTS, k=12)
    assert 0 < ranking.invalid <= ranking.beams
    assert 0 <= ranking.invalid_first <= len(PROMPTS)
    for items, scores, prompt in zip(ranking.items, ranking.scores, PROMPTS, strict=True):
        found = items[items >= 0]
        np.testing.assert_allclose(scores[: len(found)], by_hand(loud, prompt, "vocab")[::2][found], atol=SCORES)


def test_with_the_trie_none_does(loud):
    ranking = tree(loud).search(PROMPTS, k=5)
    assert (ranking.invalid, ranking.invalid_first) == (0, 0)


def test_scores_that_are_not_numbers_name_the_level(loud):
    with torch.no_grad():
        loud.model.get_output_embeddings().weight[int(loud.vocabulary.ids[1][2])] = torch.nan
    with pytest.raises(RuntimeError, match=r"scores at level . of 2 are not numbers"):
        tree(loud).search(PROMPTS, k=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scoring": "catalogue", "constraint": "level"}, "choose decode.scoring vocab or level"),
        ({"scoring": "level", "constraint": "none"}, "needs decode.scoring vocab"),
    ],
)
def test_scorings_and_constraints_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        DecodeConfig(**settings)
