"""Tables of any library make the same catalogue and log; what is no table is refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.data import Catalog, Interactions, Split
from llmrec.errors import UserError

ITEMS = {"item_id": [1, 2], "title": ["Pen", None], "price": [1.5, float("nan")]}
EVENTS = {"user_id": ["u"] * 3, "item_id": [1, 2, 1], "timestamp": [30, 10, 20], "rating": [5.0, float("nan"), 3.0]}


def as_pandas(columns: dict[str, Any]) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns)


def as_rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


LIBRARIES: list[Callable[[dict[str, Any]], Any]] = [
    dict,
    as_rows,
    as_pandas,
    lambda columns: pl.DataFrame(columns).lazy(),
    lambda columns: pl.DataFrame(columns).to_arrow(),
]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_table_of_any_library(library: Callable[[dict[str, Any]], Any]) -> None:
    catalog, log = Catalog.from_frame(pl.DataFrame(ITEMS)), Interactions.from_frame(pl.DataFrame(EVENTS))
    assert catalog.frame.rows() == [("1", "Pen", "1.5"), ("2", "", "")]
    assert Catalog.from_frame(library(ITEMS)).frame.equals(catalog.frame)
    assert Interactions.from_frame(library(EVENTS)).frame.equals(log.frame)


@pytest.mark.parametrize("wrong", [None, "items.csv", Path("items.csv"), 3, np.ones((2, 2)), [1, 2], pl.Series([1])])
def test_what_is_no_table(wrong: Any) -> None:
    for make in (Catalog.from_frame, Interactions.from_frame):
        with pytest.raises(UserError, match=r"^the i\w+: found .*, expected a polars or pandas table, .*from_file"):
            make(wrong)


def test_a_column_of_several_types() -> None:
    with pytest.raises(UserError, match=r"^the items: a pandas DataFrame that can't be read as a table: "):
        Catalog.from_frame(as_pandas({"item_id": [1, "a"]}))


@pytest.mark.parametrize("made", [Catalog, Interactions, lambda frame: Split(frame, {"kind": "mine"})])
@pytest.mark.parametrize("wrong", [None, "items.csv", {"item_id": ["a"]}, pl.DataFrame({"item_id": [1]})])
def test_constructors_refuse_frames_of_another_form(made: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^(Catalog|Interactions|Split): found .*; make the .* with "):
        made(wrong)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("part", ["train"] * 3, "part holds other values than 0 \\(train\\), 1 \\(valid\\), 2 \\(test\\)"),
        ("part", [0, 1, 7], "part holds other values than 0"),
        ("part", [0, 1, None], "part holds other values than 0"),
        ("review", [["a"]] * 3, r"review holds List\(String\); expected text"),
        ("review", [b"\xff"] * 3, "review holds Binary; expected text"),
    ],
)
def test_columns_of_another_type(column: str, values: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Interactions.from_frame(pl.DataFrame(EVENTS).with_columns(pl.Series(column, values)))


def test_arguments_of_the_log() -> None:
    log = Interactions.from_frame(EVENTS)
    for call, said in (
        (lambda: Interactions.from_frame(EVENTS, seed=-1), "seed -1: expected at least 0"),
        (lambda: log.sequences(pl.DataFrame(ITEMS)), "catalog: found a polars DataFrame, expected Catalog"),
        (lambda: log.leave_one_out().validation_examples(None), "catalog: found None, expected Catalog"),
        (lambda: log.timestamp_split(float("nan")), "valid_share nan"),
        (lambda: log.timestamp_split("0.1"), "valid_share '0.1': expected a number"),
        (lambda: Interactions.from_file(None), "path None: expected text or a path"),
        (lambda: Catalog.from_file(pl.DataFrame(ITEMS)), "path: found a polars DataFrame, expected text or a path"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_items_whose_ids_have_another_form_in_the_log() -> None:
    log = Interactions.from_frame({"user_id": ["u", "u"], "item_id": ["01", "02"]})
    with pytest.raises(UserError, match="lacks, such as '01'; the ids differ in leading zeros; write them in one form"):
        log.sequences(Catalog.from_frame(ITEMS))


def test_rows_and_masks_of_a_catalogue() -> None:
    catalog = Catalog.from_frame(ITEMS)
    assert catalog.take_rows(np.array([-1])).ids == ["2"]
    assert catalog.filter(pl.col("title") == "Pen").ids == catalog.filter(pl.Series([True, False])).ids == ["1"]
    for rows in ([5], ["title"]):
        with pytest.raises(UserError, match=r"^rows: expected a list of row numbers below 2"):
            catalog.take_rows(rows)
    for kept in (pl.Series([True]), pl.col("name") == "", "title", pl.col("title")):
        with pytest.raises(UserError, match=r"^kept: expected one bool per item, or an expression"):
            catalog.filter(kept)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    for table in (Catalog.from_frame(ITEMS), Interactions.from_frame(EVENTS)):
        with pytest.raises(UserError, match=r"can't be written \(it is a folder\)"):
            table.to_parquet(tmp_path)
        with pytest.raises(UserError, match=r"can't be written \(No such file or directory"):
            table.to_parquet(tmp_path / "no" / "items.parquet")
