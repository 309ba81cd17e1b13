"""Sentences picked from reviews."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import TEST, TRAIN, VALID, Catalog, Split
from llmrec.errors import UserError
from llmrec.intentions import Intentions, IntentionsConfig
from llmrec.intentions.reviews import LONGEST, SHORTEST, from_reviews, sentences


def told(catalog: Catalog, *events: tuple[str, str, int, str], **fields: int) -> Intentions:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "part", "review"], orient="row")
    return from_reviews(IntentionsConfig("reviews", **fields), catalog, Split(frame, {"kind": "made up"}))


@pytest.mark.parametrize(
    ("review", "found"),
    [
        ("Bought for my mom's garden. Love it!", ["Bought for my mom's garden."]),
        ("A gift for the kids... they use it daily", ["A gift for the kids", "they use it daily"]),
        ("GREAT GIFT FOR MY WIFE", []),
        ("Five stars for this gift card", []),
        ("It did not fit the car at all.", []),
        ("Fast shipping, for my father's birthday", []),
        ("<br />Fits the &quot;big&quot; box..Good for all rolls.", ['Fits the "big" box', "Good for all rolls."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(review: str, found: list[str]) -> None:
    assert list(sentences(review)) == found


@given(st.text())
def test_sentences_of_any_text(review: str) -> None:
    for sentence in sentences(review):
        assert SHORTEST <= len(sentence.split()) <= LONGEST
        assert "\n" not in sentence


def test_purpose_and_likeness_come_first(catalog: Catalog) -> None:
    review = "We are very happy today. Lovely for drying a cat quickly. The garden hose is for home use."
    found = told(catalog, ("u", "i2", TRAIN, review), per_item=2, per_user=1)
    assert found.items == {"i2": ["The garden hose is for home use.", "Lovely for drying a cat quickly."]}
    assert found.users == {"u": ["The garden hose is for home use."]}


def test_what_is_said_of_several_items_tells_none_apart(catalog: Catalog) -> None:
    found = told(catalog, ("u", "i0", TRAIN, "A gift for my wife."), ("v", "i1", TRAIN, "a gift for my wife!"))
    assert found.items == found.users == {}


def test_held_out_is_of_later_parts_and_new(catalog: Catalog) -> None:
    found = told(
        catalog,
        ("u", "i0", TRAIN, "Bought for a cake at school."),
        ("u", "i0", VALID, "Bought for a cake at school! And for the garden party."),
        ("u", "i1", TEST, "For the roof of our old van."),
    )
    assert found.items == {"i0": ["Bought for a cake at school."]}
    assert found.held_out == {"i0": ["And for the garden party."], "i1": ["For the roof of our old van."]}


def test_no_reviews(catalog: Catalog) -> None:
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i0"], "part": [TRAIN]})
    with pytest.raises(UserError, match=r"data\.columns\.review"):
        from_reviews(IntentionsConfig("reviews"), catalog, Split(frame, {"kind": "made up"}))
    assert told(catalog, ("u", "i0", TRAIN, "")) == Intentions()
