"""Field values, groups and offsets against a look at every item."""

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog
from llmrec.errors import UserError
from llmrec.recommender.request import ItemLookup

TAGS = ["Soap", "soap, Gift", "SOAP ", "gift,soap,new", "", "Straße", "new soap"]


@pytest.fixture(scope="module")
def lookup() -> ItemLookup:
    ids = [f"i{row}" for row in range(len(TAGS))]
    return ItemLookup(Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": ids, "tags": TAGS})))


@pytest.mark.parametrize(
    ("value", "rows"),
    [("soap", [0, 1, 2, 3]), (" GIFT ", [1, 3]), ("soap, gift", [1]), ("STRASSE", [5]), ("oap", []), ("", [4])],
)
def test_where_looks_at_the_whole_text_and_at_its_parts(lookup: ItemLookup, value: str, rows: list[int]) -> None:
    assert sorted(lookup.having("tags", value)) == rows


def test_groups_are_texts_in_whatever_case(lookup: ItemLookup) -> None:
    groups = lookup.groups("tags", "max_per_field tags=1")
    assert groups[0] == groups[2]
    assert groups[4] == -1
    assert len(set(groups)) == len(TAGS) - 1


def test_unknown_names(lookup: ItemLookup) -> None:
    with pytest.raises(UserError, match=r"max_per_field x=1: no such field; known are title, tags"):
        lookup.groups("x", "max_per_field x=1")
    with pytest.raises(UserError, match=r"allow zz: no such item among the 7"):
        lookup.rows(["i1", "zz"], "allow")


def test_offsets_by_name_and_by_row(lookup: ItemLookup) -> None:
    expected = np.array([0, 0.5, 0, 0, 0, 0, -2], np.float32)
    np.testing.assert_array_equal(lookup.offsets({"i6": -2, "i1": 0.5}), expected)
    np.testing.assert_array_equal(lookup.offsets(expected.astype(np.float64)), expected)
    np.testing.assert_array_equal(lookup.offsets({}), np.zeros(7, np.float32))
