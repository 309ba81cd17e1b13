"""Answers to many histories at once, to histories with unknown items, and to empty ones."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tolerances import DENSE

from llmrec.errors import UserError
from llmrec.recommender.recommender import Recommender

HISTORIES = [["i3"], ["i1", "i2", "i7", "i1"], ["i19", "nope", "i4"], []]


@pytest.fixture(scope="module")
def popular(recommender: Recommender) -> Recommender:
    """The same recommender with training events: i5 has three, i2 has two, i9 has one."""
    counts = np.zeros(20, np.int64)
    counts[[5, 2, 9]] = 3, 2, 1
    copy = Recommender(
        recommender.model, recommender.tokenizer, recommender.store, recommender.base, recommender.base_model
    )
    copy.store = replace(recommender.store, train_counts=counts)
    return copy


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4},
        {"k": 25},
        {"k": 30, "include_seen": True},
        {"k": 4, "where": {"brand": "alba"}},
        {"k": 4, "exact": True},
        {"k": 4, "prompt": "soap"},
        {"k": 4, "empty_history": "model"},
        {"k": 4, "max_per_field": {"brand": 1}},
        {"k": 4, "offsets": {"i4": 30.0}},
        {"k": 4, "phrasings": 2},
        {"k": 4, "allow": []},
    ],
)
def test_many_histories_are_answered_as_one_by_one(popular: Recommender, options: dict) -> None:
    together = popular.recommend(histories=HISTORIES, **options)
    for found, history in zip(together, HISTORIES, strict=True):
        alone = popular.recommend(history, **options)
        assert [item.item_id for item in found] == [item.item_id for item in alone]
        assert [item.score for item in found] == pytest.approx([item.score for item in alone], abs=DENSE)
        assert (found.reason, found.notes) == (alone.reason, alone.notes)
    assert len(together[0]) == len({item.item_id for item in together[0]})


def test_many_histories_are_decoded_together(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, batches = recommender.ranker, []
    rank: Callable = ranker.rank

    def counting(requests: list, *others: object, **options: object) -> object:
        batches.append(len(requests))
        return rank(requests, *others, **options)

    monkeypatch.setattr(ranker, "rank", counting)
    recommender.recommend(histories=HISTORIES, empty_history="model")
    assert batches == [4]


def test_no_histories_have_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend(histories=[]) == []


def test_unknown_items_are_left_out_with_a_note(recommender: Recommender) -> None:
    known = recommender.recommend(["i19", "i4"])
    assert known.notes == []
    answer = recommender.recommend(["i19", "zz", "i4", "yy"])
    assert answer == known
    assert answer.notes == ["Left out 2 of the 4 items of the history, not in the catalogue: 'zz' and others."]
    with pytest.raises(UserError, match="history zz: no such item"):
        recommender.recommend(["i19", "zz"], unknown="fail")


def test_delisted_items_are_left_out_too(recommender: Recommender) -> None:
    less = Recommender(
        recommender.model, recommender.tokenizer, recommender.store, recommender.base, recommender.base_model
    )
    less.remove_items(["i4"])
    answer = less.recommend(["i19", "i4"], k=3)
    assert answer.notes == ["Left out 1 of the 2 items of the history, not in the catalogue: 'i4'."]
    assert len(answer) == 3


@pytest.mark.parametrize("history", [[], ["zz"]])
def test_an_empty_history_is_answered_by_popularity(popular: Recommender, history: list[str]) -> None:
    answer = popular.recommend(history, k=5, exclude=["i2"])
    assert [item.item_id for item in answer] == ["i5", "i9", "i0", "i1", "i3"]
    # one more event for each of 20 items, 6 events
    assert [item.score for item in answer[:3]] == pytest.approx(np.log(np.array([4, 2, 1]) / 26), abs=1e-6)
    assert answer.notes[-1] == "The history is empty: answered by popularity, the number of training events."
    boosted = popular.recommend(history, k=2, offsets={"i7": 9.0}, max_per_field={"brand": 1})
    assert [item.item_id for item in boosted] == ["i7", "i2"]


def test_an_empty_history_is_answered_by_the_model_if_asked(popular: Recommender) -> None:
    answer = popular.recommend([], k=20, empty_history="model")
    prompt = popular.ranker.prompt_ids([])
    assert [item.item_id for item in answer] == [f"i{row}" for row in popular.ranker.rank([prompt], 20).items[0]]
    assert answer.notes == ["The history is empty: answered by the model after an empty history."]


def test_a_prompt_answers_an_empty_history(popular: Recommender) -> None:
    answer = popular.recommend(["zz"], "soap", k=5)
    assert answer == popular.recommend(prompt="soap", k=5)
    assert answer.notes == ["Left out 1 of the 1 items of the history, not in the catalogue: 'zz'."]
