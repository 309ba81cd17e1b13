import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from llmrec.data import Interactions, filters
from llmrec.errors import UserError


def log(rows, columns=("user_id", "item_id", "timestamp"), **options) -> Interactions:
    return Interactions.from_frame(pl.DataFrame(rows, schema=list(columns), orient="row"), **options)


def test_rows_are_grouped_by_user_and_sorted_by_time():
    events = log([("b", "x", 2), ("a", "y", 9), ("b", "z", 1), ("a", "x", 3)])
    rows = [("a", "x", 3), ("a", "y", 9), ("b", "z", 1), ("b", "x", 2)]
    assert events.frame.rows() == [(user, item, second * 10**6) for user, item, second in rows]


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


@pytest.mark.parametrize("kind", ["iso", "parquet", "milliseconds", "float seconds", "float text"])
def test_events_within_one_second_keep_their_order(kind):
    moments = [datetime(2024, 5, 1, 12, 0, 0, 50_000, UTC) + timedelta(milliseconds=100 * at) for at in range(8)]
    times = {
        "iso": [moment.replace(tzinfo=None).isoformat(timespec="milliseconds") for moment in moments],
        "parquet": moments,
        "milliseconds": [round(moment.timestamp() * 1000) for moment in moments],
        "float seconds": [moment.timestamp() for moment in moments],
        "float text": [f"{moment.timestamp():.3f}" for moment in moments],
    }[kind]
    rows = list(zip("u" * 8, "abcdefgh", times, strict=True))
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        frame = log(rows, seed=seed).frame
        assert "".join(frame["item_id"]) == "abcdefgh"
        assert frame["timestamp"].n_unique() == 8


def test_a_repeat_within_one_second_is_no_duplicate():
    events = log([("u", "a", "2024-05-01T12:00:00.100"), ("u", "a", "2024-05-01T12:00:00.900")])
    assert len(filters.exact_duplicates(events)) == 2


def test_a_part_comes_before_time():
    rows = [("u", "a", 3, 0), ("u", "b", 1, 1), ("u", "c", 2, 0), ("v", "a", 1, 2), ("v", "b", 5, 0)]
    frame = log(rows, ["user_id", "item_id", "timestamp", "part"]).frame
    assert frame.select("item_id", "part").rows() == [("c", 0), ("a", 0), ("b", 1), ("b", 0), ("a", 2)]


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", "NaN"])
def test_a_missing_rating_is_null(missing):
    values = pl.Series([5.0, missing]) if not isinstance(missing, str) else ["5", missing]
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "y"], "rating": values})
    assert Interactions.from_frame(frame).frame["rating"].to_list() == [5.0, None]


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
    assert events.frame.rows() == [("u1", "02", 4_000_000, 3.0), ("u1", "01", 5_000_000, 4.5)]
    events.to_parquet(tmp_path / "log.parquet")
    assert Interactions.from_parquet(tmp_path / "log.parquet").frame.equals(events.frame)
    with pytest.raises(UserError, match=r"no column 'timestamp' \(data\.columns\.time\); found: who, what, when"):
        Interactions.from_file(path, "who", "what")


def test_repr_counts():
    assert repr(log([("a", "x", 1), ("a", "y", 2)])) == "Interactions(2 events; 1 users, 2 items)"
