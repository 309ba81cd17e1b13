"""Requests as the user gives them: histories, plain words, both."""

import numpy as np
import pytest
import torch
from tolerances import SUMS

from llmrec.decode.config import DecodeConfig
from llmrec.decode.filters import Filter, Quota
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.search import NotNumbersError
from llmrec.decode.tree import TreeSearch
from llmrec.errors import UserError


@pytest.fixture
def ranker(shop):
    search = TreeSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(beams=4, dtype="float32"))
    return ItemRanker(shop.renderer, search, context=160)


@pytest.mark.parametrize(
    ("request_", "task"),
    [
        ({"history": [3, 1]}, "sequential"),
        ({"query": "hand balm"}, "search"),
        ({"history": [3, 1], "query": "hand balm"}, "personal-search"),
    ],
)
def test_requests_use_the_first_phrasing_of_their_task(shop, ranker, request_, task):
    values = {"query": "hand balm", "history": shop.renderer.history([3, 1])}
    prompt = shop.renderer.prompt(task, 0, **{name: values[name] for name in request_})
    assert ranker.prompt_ids(**request_) == shop.renderer.encode_prompts([prompt])[0]


@pytest.mark.parametrize("query", ["", "  \n", "<a_1><b_2>", "<|end|>"])
def test_empty_query_is_refused(ranker, query):
    with pytest.raises(UserError, match=r"prompt .* is empty"):
        ranker.prompt_ids(query=query)


def test_no_request_is_refused(ranker):
    with pytest.raises(UserError, match=r"history .* prompt"):
        ranker.prompt_ids()


def test_query_must_leave_room_for_the_answer(ranker):
    words = ["kind"] * 200
    lengths = {n: len(ranker.prompt_ids(query=" ".join(words[:n]))) for n in (1, 2)}
    fits = 1 + (160 - 2 - lengths[1]) // (lengths[2] - lengths[1])
    assert len(ranker.prompt_ids(query=" ".join(words[:fits]))) <= 158
    with pytest.raises(UserError, match=r"leaves room for 158.*shorten prompt"):
        ranker.prompt_ids(query=" ".join(words[: fits + 1]))


def test_excluded_items_never_come_out_and_the_rest_does(shop, ranker):
    requests = [ranker.prompt_ids(history=[item]) for item in range(6)]
    excluded = [np.arange(n, dtype=np.int32) for n in (0, 3, 10, 15, 18, 20)]
    ranking = ranker.rank(requests, k=5, filters=[Filter(excluded=rows) for rows in excluded])
    for items, gone in zip(ranking.items, excluded, strict=True):
        found = items[items >= 0]
        assert len(found) == len(set(found)) == min(5, 20 - len(gone))
        assert not set(found) & set(gone)
    stats = ranker.stats()
    assert stats["beams"] == 5, "4 beams are widened to the 5 answers"
    assert (stats["scoring"], stats["constraint"]) == ("catalogue", "trie")
    assert (stats["invalid_rate"], stats["invalid_first_rate"]) == (0.0, 0.0)
    assert stats["users_per_second"] > 0


@pytest.mark.parametrize("field", ["beams", "batch_size"])
def test_config_wants_at_least_one(field):
    with pytest.raises(UserError, match=f"decode.{field} 0"):
        DecodeConfig(**{field: 0})


def test_offsets_of_items_that_may_not_come_out_draw_no_beams(shop, ranker):
    """One beam; the largest offset belongs to an excluded item of a branch of its own."""
    ranker.search.config.beams = 1
    request = ranker.prompt_ids(history=[3])
    allowed = np.zeros(20, bool)
    allowed[[0, 7, 19]] = True
    offsets = np.zeros(20)
    offsets[7], offsets[18] = 50, 500
    items, scores = ranker.best([request], 1, allowed, offsets=offsets)
    assert items.tolist() == [7]
    assert scores[0] == pytest.approx(50, abs=10)
    assert offsets[18] == 500, "the caller's offsets are left alone"


@pytest.mark.parametrize("exact", [False, True])
def test_quotas_hold_and_the_best_of_each_group_come_out(shop, ranker, exact):
    ranker.search.config.beams = 20
    request = ranker.prompt_ids(history=[3])
    ranking = ranker.rank([request], 20).items[0].tolist()
    groups = shop.codes[:, 0]
    items, scores = ranker.best([request], 6, np.ones(20, bool), [Quota(groups, 1)], exact=exact)
    assert items.tolist() == [
        next(item for item in ranking if groups[item] == g) for g in dict.fromkeys(groups[ranking])
    ]
    assert (np.diff(scores) <= 0).all()


def test_nothing_allowed_asks_no_model(ranker, monkeypatch):
    monkeypatch.setattr(ranker, "rank", None)
    items, scores = ranker.best([[5, 6]], 3, np.zeros(20, bool), offsets=np.ones(20))
    assert (len(items), len(scores)) == (0, 0)


def test_weights_that_are_not_numbers_are_the_users_to_mend(ranker):
    with torch.no_grad():
        next(ranker.search.model.parameters())[5] = torch.nan
    with pytest.raises(UserError, match=r"level 1 of 2 are not numbers.* hold NaN .*train\.learning_rate"):
        ranker.rank([[5, 6]], 3)


def test_scores_that_are_not_numbers_with_sound_weights_are_a_defect(ranker, monkeypatch):
    monkeypatch.setattr(ranker.search.head, "level", lambda hidden, level: torch.full((len(hidden), 4), torch.nan))
    with pytest.raises(NotNumbersError, match="level 1 of 2"):
        ranker.rank([[5, 6]], 3)


@pytest.mark.parametrize("exact", [False, True])
def test_several_phrasings_rank_by_the_mean_of_their_scores(shop, exact):
    search = TreeSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(beams=20, dtype="float32"))
    ranker = ItemRanker(shop.renderer, search, context=160)
    phrased = ranker.phrased([3, 1], "hand balm", 4)
    prompts = shop.renderer.templates["personal-search"].templates[:4]
    assert [shop.tokenizer.decode(ids) for ids in phrased] == [
        text.format(history=shop.renderer.history([3, 1]), query="hand balm") for text in prompts
    ]
    each = search.search(phrased, 20)
    mean = np.zeros(20)
    for items, scores in zip(each.items, each.scores, strict=True):
        mean[items] += scores / 4
    allowed = np.arange(20) % 3 > 0
    items, scores = ranker.best(phrased, 5, allowed, exact=exact)
    expected = np.argsort(-np.where(allowed, mean, -np.inf))[:5]
    assert items.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, mean[expected], atol=SUMS)


def test_no_more_phrasings_than_there_are(ranker):
    with pytest.raises(UserError, match=r"phrasings 99: expected 1 to \d, as many as search\.yaml has"):
        ranker.phrased(query="soap", phrasings=99)
    with pytest.raises(UserError, match="phrasings 0"):
        ranker.phrased(query="soap", phrasings=0)
