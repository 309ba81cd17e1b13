"""What may come out of a recommender, whatever the model thinks."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.serve.recommender import Recommender

ROWS = st.lists(st.integers(0, 19), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=ROWS.filter(bool), exclude=ROWS, k=st.integers(1, 25), include_seen=st.booleans())
def test_k_distinct_allowed_items_come_out_whenever_there_are_k(
    recommender: Recommender, history: list[int], exclude: list[int], k: int, include_seen: bool
) -> None:
    ids = recommender.catalog.ids
    gone = set(exclude) | (set() if include_seen else set(history))
    items = recommender.recommend([ids[i] for i in history], None, k, [ids[i] for i in exclude], include_seen)
    found = [item.item_id for item in items]
    assert len(found) == len(set(found)) == min(k, 20 - len(gone))
    assert not {ids[i] for i in gone} & set(found)
    assert [item.rank for item in items] == list(range(1, len(items) + 1))
    assert all(a.score >= b.score for a, b in pairwise(items))


def test_where_keeps_items_with_that_value_only(recommender: Recommender) -> None:
    items = recommender.recommend(prompt="soap", where={"brand": "alba"}, k=20)
    assert sorted(item.item_id for item in items) == [f"i{row}" for row in range(5)]
    assert all(item.fields["brand"] == "Alba" for item in items)
    assert recommender.recommend(prompt="soap", where={"brand": "nobody"}) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "--history"),
        ({"prompt": "  "}, "empty"),
        ({"history": ["i0", "x9"]}, "--history x9"),
        ({"history": ["i0"], "exclude": ["y"]}, "--exclude y"),
        ({"prompt": "soap", "where": {"colour": "red"}}, "--where colour=red"),
        ({"prompt": "soap", "k": 0}, "--k 0"),
        ({"prompt": "word " * 400}, "context"),
    ],
)
def test_mistakes_are_named(recommender: Recommender, request_: dict, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        recommender.recommend(**request_)


def test_item_tokens_in_a_prompt_are_only_words(recommender: Recommender) -> None:
    token = recommender.renderer.item_text[3]
    assert recommender.ranker.prompt_ids(query=f"soap {token}") == recommender.ranker.prompt_ids(query="soap")


def test_saved_and_loaded_answers_are_the_same(recommender: Recommender, tmp_path: Path) -> None:
    recommender.save_pretrained(tmp_path / "model")
    again = Recommender.from_pretrained(tmp_path / "model")
    request = {"history": ["i1", "i7"], "prompt": "hand balm", "k": 20}
    assert again.recommend(**request) == recommender.recommend(**request)
