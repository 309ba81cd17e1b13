"""The same id has the same text, whatever type the column has."""

from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data import Catalog, Interactions
from llmrec.data.ids import difference, id_column, is_id, look_alikes, rows_of
from llmrec.errors import UserError


def read(values, dtype=None) -> list[str]:
    return id_column(pl.Series("item_id", values, dtype=dtype), "log.csv").to_list()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([101, 102], pl.Int64),
        ([101, 102], pl.UInt64),
        ([101.0, 102.0], pl.Float64),
        ([101.0, 102.0], pl.Float32),
        ([Decimal("101.00"), Decimal("102.00")], pl.Decimal(10, 2)),
        ([b"101", b"102"], pl.Binary),
        (["101", "102"], pl.String),
        (["101", "102"], pl.Categorical),
        (["101.0", "102"], pl.String),
        (["101", "102.00"], pl.String),
    ],
)
def test_a_number_has_one_form(values, dtype):
    assert read(values, dtype) == ["101", "102"]


@pytest.mark.parametrize("values", [["0042", "7"], ["B7", "101.0"], ["1.5", "2.0"], [" B 1", "b1"], ["1e3", "2.0"]])
def test_texts_stay(values):
    assert read(values) == values


def test_leading_zeros_stay_in_a_column_of_numbers():
    assert read(["0042", "7.0"]) == ["0042", "7"]


def test_a_fraction_far_down_the_column_decides_too():
    assert read(["1.0"] * 2000 + ["B7"]) == ["1.0"] * 2000 + ["B7"]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([b"\xff"], pl.Binary, "holds bytes that are not UTF-8 text"),
        ([1.0, 2.0**60], pl.Float64, "holds 1.15.*e.18 as Float64, which rounds whole numbers above 9,007"),
        ([16_777_218.0], pl.Float32, "as Float32, which rounds whole numbers above 16,777,216"),
        ([1.0, float("nan")], pl.Float64, "row 2 has no item_id"),
        ([1.5, float("nan")], pl.Float64, "row 2 has no item_id"),
        (["a", ""], pl.String, "row 2 has no item_id"),
        ([True], pl.Boolean, "holds Boolean; expected text or numbers"),
    ],
)
def test_ids_that_cannot_be_read(values, dtype, message):
    with pytest.raises(UserError, match=rf"log\.csv: .*{message}"):
        read(values, dtype)


def test_ids_of_json():
    assert [is_id(value) for value in (1, "a", 2.0, 1.5, float("nan"), None, True, [1])] == [True] * 3 + [False] * 5


numbers = st.lists(st.integers(0, 2**53), min_size=1, max_size=20, unique=True)
WRITERS = [
    lambda n: pl.Series("item_id", n, pl.Int64),
    lambda n: pl.Series("item_id", n, pl.Float64),
    lambda n: pl.Series("item_id", [str(x) for x in n]),
    lambda n: pl.Series("item_id", [f"{x}.0" if x % 2 else str(x) for x in n]),
    lambda n: pl.Series("item_id", [Decimal(x) for x in n], pl.Decimal(38, 2)),
    lambda n: pl.Series("item_id", [str(x).encode() for x in n]),
]


@given(numbers, st.sampled_from(WRITERS), st.sampled_from(WRITERS))
def test_events_meet_their_items(values, of_events, of_items):
    events = of_events(values).to_frame().with_columns(user_id=pl.lit("u"))
    log, catalog = Interactions.from_frame(events), Catalog.from_frame(of_items(values).to_frame())
    assert log.frame["item_id"].to_list() == catalog.ids == [str(value) for value in values]


def test_look_alikes():
    pairs = look_alikes(pl.Series(["é", "e\u0301", "a", "a ", "b", "x  y", "x y", "\ufeffb", "B"]))
    assert pairs == [("é", "e\u0301"), ("a", "a "), ("b", "\ufeffb"), ("x  y", "x y")]
    assert look_alikes(pl.Series(["a", "b", "é"])) == []


def test_difference_needs_most_ids():
    known = pl.Series(["A1", "A2", "A3"])
    assert difference(pl.Series(["a1", "a2", "zz"]), known) == "upper and lower case"
    assert difference(pl.Series(["a1", "yy", "zz"]), known) is None


@given(st.lists(st.text("ab\N{LATIN SMALL LETTER E WITH ACUTE}", max_size=14), unique=True), st.data())
def test_the_rows_of_ids_as_a_dictionary_finds_them(ids, data):
    wanted = data.draw(st.lists(st.sampled_from([*ids, "c", "a longer id that is not there"])))
    index = {item: row for row, item in enumerate(ids)}
    found = rows_of(pl.Series("item_id", ids, pl.String), wanted)
    assert found.dtype == np.int64
    assert found.tolist() == [index.get(item, -1) for item in wanted]
