import random

import polars as pl
import pytest

from llmrec.data import Interactions
from llmrec.errors import UserError


def log(rows, columns=("user_id", "item_id", "timestamp"), **options) -> Interactions:
    return Interactions.from_frame(pl.DataFrame(rows, schema=list(columns), orient="row"), **options)


def test_rows_are_grouped_by_user_and_sorted_by_time():
    events = log([("b", "x", 2), ("a", "y", 9), ("b", "z", 1), ("a", "x", 3)])
    assert events.frame.rows() == [("a", "x", 3), ("a", "y", 9), ("b", "z", 1), ("b", "x", 2)]


def test_without_timestamps_the_order_stays():
    events = log([("b", "x"), ("a", "y"), ("b", "a"), ("a", "b")], ["user_id", "item_id"])
    assert events.frame["item_id"].to_list() == ["y", "b", "x", "a"]
    assert not events.has_timestamps


def test_ties_are_shuffled_by_seed_whatever_the_file_order():
    rows = [(user, item, 5) for user in "abcdefgh" for item in "12345"]
    expected = log(rows, seed=3).frame
    random.Random(0).shuffle(rows)
    assert log(rows, seed=3).frame.equals(expected)
    assert not log(rows, seed=4).frame.equals(expected)
    orders = {tuple(part["item_id"]) for part in expected.partition_by("user_id")}
    assert len(orders) > 4, "every user has an order of their own"


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (["100", "200"], [100, 200]),
        (["100.0", "200.5"], [100, 200]),
        (["1970-01-02", "1970-01-01T00:01:00Z"], [86400, 60]),
        ([1.0, 2.0], [1, 2]),
        (pl.Series([60, 120]).cast(pl.Datetime("ms")), [0, 0]),
        (pl.Series([1, 2]).cast(pl.Date), [86400, 172800]),
    ],
)
def test_times_of_many_kinds(found, seconds):
    events = Interactions.from_frame(pl.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"], "timestamp": found}))
    assert events.frame["timestamp"].to_list() == seconds


@pytest.mark.parametrize("bad", ["yesterday", "", None, "1e400"])
def test_bad_time_names_row_and_value(bad):
    with pytest.raises(UserError, match=r"log\.csv: row 2 has timestamp"):
        log([("a", "x", "1"), ("a", "y", bad)], source="log.csv")


def test_bad_rating_names_row_and_value():
    with pytest.raises(UserError, match="row 1 has rating 'five'; expected a number"):
        log([("a", "x", "five")], ["user_id", "item_id", "rating"])


def test_missing_id_and_column():
    with pytest.raises(UserError, match="row 2 has no user_id"):
        log([("a", "x"), (None, "y")], ["user_id", "item_id"])
    with pytest.raises(UserError, match="no column 'item_id'"):
        log([("a",)], ["user_id"])


def test_from_file_and_parquet_round_trip(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("who\twhat\twhen\tstars\nu1\t01\t5\t4.5\nu1\t02\t4\t3\n")
    events = Interactions.from_file(path, "who", "what", "when", "stars")
    assert events.frame.rows() == [("u1", "02", 4, 3.0), ("u1", "01", 5, 4.5)]
    events.to_parquet(tmp_path / "log.parquet")
    assert Interactions.from_parquet(tmp_path / "log.parquet").frame.equals(events.frame)
    with pytest.raises(UserError, match=r"no column 'timestamp' \(data\.columns\.time\); found: who, what, when"):
        Interactions.from_file(path, "who", "what")


def test_repr_counts():
    assert repr(log([("a", "x", 1), ("a", "y", 2)])) == "Interactions(2 events; 1 users, 2 items)"
