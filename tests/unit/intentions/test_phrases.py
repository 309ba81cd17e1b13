"""Phrases of texts, and how they are joined."""

import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.intentions.reviews import FEWEST, MOST, Phrases, join, phrases_in

PHRASE = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3).map(" ".join)


def catalog(*texts: str) -> Catalog:
    titles = [text.split("|")[0] for text in texts]
    bodies = [text.partition("|")[2] for text in texts]
    ids = [str(n) for n in range(len(texts))]
    return Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": titles, "description": bodies}))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Heavy poly yard cart", {"cart", "yard cart", "poly yard cart"}),
        ("Steel, wood", {"steel", "wood"}),
        ("the gift of movies", {"gift", "movies", "gift of movies"}),
        ("FE338 carboy carrier 4x4 9mm", {"carrier", "carboy carrier"}),
        ("<b>soft</b> wool&nbsp;socks", {"socks", "wool socks", "soft wool socks"}),
        ("what you need", set()),
        ("", set()),
    ],
)
def test_phrases_in(text: str, found: set[str]) -> None:
    assert set(phrases_in(text)) == found


@given(st.text())
def test_phrases_of_any_text(text: str) -> None:
    for phrase in phrases_in(text):
        assert 1 <= len(phrase.split()) <= 3
        assert not re.search(r"[\d<>&]", phrase)


def test_what_sets_an_item_apart_comes_first_and_codes_never() -> None:
    shop = catalog(
        "Red pen|A pen for home. Home office, felt tip. zzcode",
        "Blue pen|A pen for home. Home office, felt tip",
        "Roof rack|Home, roof rack",
        "Roof rack|Home, steel",
        "Box|Home, steel",
    )
    phrases = Phrases(shop)
    assert "zzcode" not in " ".join(phrases.names)
    assert next(phrases.ranked(phrases.weights[[2]])) == "roof rack"
    ranked = list(phrases.ranked(phrases.weights[[0]]))
    assert "home" not in ranked, "it stands in most texts"
    words = [word for phrase in ranked for word in phrase.split()]
    assert len(words) == len(set(words)), "phrases share no word"
    assert {"felt tip", "home office"} <= set(ranked)


def test_texts_without_common_phrases() -> None:
    for shop in (catalog("", ""), catalog("alpha", "beta")):
        with pytest.raises(UserError, match=r"intentions\.source extract"):
            Phrases(shop)


@given(st.lists(PHRASE, unique=True, max_size=14), st.integers(0, 4), st.integers(1, 4))
def test_join(ranked: list[str], texts: int, each: int) -> None:
    joined = join(iter(ranked), texts, each)
    assert len(joined) <= texts
    told = [phrase for text in joined for phrase in text.split(", ")]
    assert len(told) == len(set(told))
    assert set(told) <= set(ranked[: texts * each])
    for text in joined:
        assert FEWEST <= len(text.replace(",", "").split()) <= MOST
    if texts and len(" ".join(ranked[:each]).split()) >= FEWEST:
        assert joined, "enough words for one text"


def test_join_deals_in_turn() -> None:
    assert join(["a b", "c d", "e f", "g h", "i", "j"], 2, 3) == ["a b, e f, i", "c d, g h, j"]
    assert join(["a b", "c"], 2, 3) == ["a b, c"]
    assert join(["a", "b"], 2, 3) == []
