"""Requests as the user gives them: histories, plain words, both."""

import numpy as np
import pytest

from llmrec.decode.beam import BeamSearch
from llmrec.decode.config import DecodeConfig
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError


@pytest.fixture
def ranker(shop):
    search = BeamSearch(shop.model, shop.vocabulary, shop.trie, DecodeConfig(beams=5, dtype="float32"))
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
    with pytest.raises(UserError, match=r"--prompt .* is empty"):
        ranker.prompt_ids(query=query)


def test_no_request_is_refused(ranker):
    with pytest.raises(UserError, match=r"--history .* --prompt"):
        ranker.prompt_ids()


def test_query_must_leave_room_for_the_answer(ranker):
    words = ["kind"] * 200
    lengths = {n: len(ranker.prompt_ids(query=" ".join(words[:n]))) for n in (1, 2)}
    fits = 1 + (160 - 2 - lengths[1]) // (lengths[2] - lengths[1])
    assert len(ranker.prompt_ids(query=" ".join(words[:fits]))) <= 158
    with pytest.raises(UserError, match=r"leaves room for 158.*shorten --prompt"):
        ranker.prompt_ids(query=" ".join(words[: fits + 1]))


def test_excluded_items_never_come_out_and_the_rest_does(shop, ranker):
    requests = [ranker.prompt_ids(history=[item]) for item in range(6)]
    excluded = [np.arange(n, dtype=np.int32) for n in (0, 3, 10, 15, 18, 20)]
    ranking = ranker.rank(requests, k=5, excluded=excluded)
    for items, gone in zip(ranking.items, excluded, strict=True):
        found = items[items >= 0]
        assert len(found) == len(set(found)) == min(5, 20 - len(gone))
        assert not set(found) & set(gone)
    stats = ranker.stats()
    assert (stats["beams"], stats["scoring"], stats["invalid_rate"]) == (5, "vocab", 0.0)
    assert stats["users_per_second"] > 0


@pytest.mark.parametrize("field", ["beams", "batch_size"])
def test_config_wants_at_least_one(field):
    with pytest.raises(UserError, match=f"--decode.{field} 0"):
        DecodeConfig(**{field: 0})
