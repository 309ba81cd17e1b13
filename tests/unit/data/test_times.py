"""Every form of a time gives the same microseconds; a column of two forms is refused."""

import random
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.bad_rows import RowsError
from llmrec.data.times import DAY, microseconds
from llmrec.errors import UserError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def read(values, dtype=None) -> list[int]:
    return microseconds(pl.Series(values, dtype=dtype), "log.csv").to_list()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["100", "200"], [100_000_000, 200_000_000]),
        (["100.0", " 200.5"], [100_000_000, 200_500_000]),
        ([1.0, 2.25], [1_000_000, 2_250_000]),
        ([0, -1], [0, -1_000_000]),
        ([0, 1_714_564_800_050], [0, 1_714_564_800_050_000]),
        (["8.8125e8", "881250001.5"], [881_250_000_000_000, 881_250_001_500_000]),
        ([Decimal("1714564800.05")], [1_714_564_800_050_000]),
        (["1970-01-02", "1970-01-03"], [DAY, 2 * DAY]),
        (["1970-01-01T00:01:00Z", "1970-01-01 02:00:00.5+02:00"], [60_000_000, 500_000]),
        (["1970-01-01 00:00:01 UTC", "1970/01/01 00:01"], [1_000_000, 60_000_000]),
        (["1970-W01-5", "19700101T000000,5"], [DAY, 500_000]),
        ([19700102, 19700103], [DAY, 2 * DAY]),
        (["19700102", "1970-01-03"], [DAY, 2 * DAY]),
        ([19700102.0], [DAY]),
        ([197001020001], [DAY + 60_000_000]),
        (["19700102000001"], [DAY + 1_000_000]),
        ([5, 19700199, 40_000_000], [5_000_000, 19_700_199_000_000, 40_000_000_000_000]),  # no date: a count
        ([None, None], [None, None]),
    ],
)
def test_known_times(values, expected):
    assert read(values) == expected


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_datetimes_of_every_unit_and_zone(unit):
    moment = datetime(2024, 5, 1, 12, 0, 0, 50_000)
    expected = [(moment.replace(tzinfo=UTC) - EPOCH) // MICROSECOND]
    assert read([moment], pl.Datetime(unit)) == expected
    zoned = pl.Series([moment], dtype=pl.Datetime(unit)).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert microseconds(zoned, "log").to_list() == expected
    assert read([moment.date()], pl.Date) == [(datetime(2024, 5, 1, tzinfo=UTC) - EPOCH) // MICROSECOND]
    assert read(["2024-05-01", "2024-05-01"], pl.Categorical)[0] % DAY == 0


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1714564800, 1714564800050], r"row 1 has 1714564800 \(seconds\), row 2 has 1714564800050 \(milliseconds\)"),
        (["1714564800050000", "1714564800.5"], r"row 2 has '1714564800\.5' \(seconds\), row 1 has .* \(microseconds\)"),
        ([1.5e18, 1.5e12], r"row 2 has 15.* \(milliseconds\), row 1 has .* \(nanoseconds\)"),
        (["1709640000", "2024-03-01"], r"row 1 has '1709640000' \(a number\), row 2 has '2024-03-01' \(a date\)"),
        ([20240131, 20240131, 1714564800], r"row 1 has 20240131 \(a date\), row 3 has 1714564800 \(a number"),
        ([20240131, 20240131120000], r"row 1 has 20240131 \(a date\), row 2 has 20240131120000"),
    ],
)
def test_two_forms_in_a_column_are_refused(values, shown):
    with pytest.raises(UserError, match=f"log\\.csv: the timestamps have two forms: {shown}.*; write all of them"):
        read(values)


@pytest.mark.parametrize(
    "values",
    [
        ["1", "yesterday"],
        ["1", ""],
        ["1", None],
        ["1", "1e400"],
        ["1", "nan"],
        [1.5, float("inf")],
        [1.5, float("nan")],
        ["2024-05-01", "24-05-01"],  # no date of the year 24
        ["2024-05-01", "01/05/2024"],
        ["2024-05-01", "2024-02-30"],
        [20240131, 20240231, 20240101],
        [20240131, None],
    ],
)
def test_a_bad_time_names_row_and_value(values):
    row = 1 if values[0] is None else 2
    with pytest.raises(UserError, match=rf"log\.csv: row {row} has timestamp .*; expected a number of seconds"):
        read(values)


def test_a_column_of_no_times_is_refused():
    for values in ([True, False], [[1], [2]], [b"1", b"2"]):
        with pytest.raises(UserError, match="row 1 has timestamp"):
            read(values)


moments = st.lists(
    st.datetimes(datetime(1980, 1, 1), datetime(2099, 12, 31), timezones=st.just(UTC)), min_size=1, max_size=20
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def since_epoch(values: list[datetime]) -> list[int]:
    return [(value - EPOCH) // MICROSECOND for value in values]


@given(moments, st.booleans())
def test_numbers_of_every_unit(values, as_text):
    exact = since_epoch(values)
    for unit in (1, 10**3, 10**6):  # a number of the unit has `unit` microseconds
        numbers = [value // unit for value in exact]
        assert read([str(number) for number in numbers] if as_text else numbers) == [n * unit for n in numbers]
    nanoseconds = [value * 1000 + 999 for value in exact]
    assert read([str(number) for number in nanoseconds] if as_text else nanoseconds) == exact


@given(moments, st.booleans())
def test_fractions_of_seconds_and_milliseconds(values, as_text):
    exact = since_epoch(values)
    for unit in (10**6, 10**3):
        digits = len(str(unit)) - 1
        texts = [f"{value // unit}.{value % unit:0{digits}}" for value in exact]
        # 64 bits hold seconds of this century to less than half a microsecond
        assert read(texts if as_text else [float(text) for text in texts]) == exact


@given(moments, st.sampled_from(["T", " "]), st.data())
def test_iso_texts_of_every_dialect(values, between, data):
    texts = []
    for value in values:
        zone = data.draw(st.none() | zones, label="zone")
        local = value.astimezone(zone) if zone else value.replace(tzinfo=None)
        texts.append(local.isoformat(between, timespec="microseconds"))
    assert read(texts) == since_epoch(values)
    coarse = [value.replace(microsecond=0, tzinfo=None) for value in values]
    expected = since_epoch([value.replace(tzinfo=UTC) for value in coarse])
    assert read([value.isoformat(between) for value in coarse]) == expected
    assert read([value.isoformat(between) + "Z" for value in coarse]) == expected
    assert read([f"{value:%Y%m%d%H%M%S}" for value in coarse]) == expected
    assert read([int(f"{value:%Y%m%d%H%M%S}") for value in coarse]) == expected


@given(moments)
def test_days_as_numbers_and_texts(values):
    days = [value.replace(hour=0, minute=0, second=0, microsecond=0) for value in values]
    for pattern in ("%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"):
        assert read([day.strftime(pattern) for day in days]) == since_epoch(days)
    assert read([int(day.strftime("%Y%m%d")) for day in days]) == since_epoch(days)


@given(moments, st.integers(0, 2**31))
def test_two_units_in_a_column_are_refused_in_any_order(values, seed):
    exact = since_epoch(values)
    mixed = [value // 10**6 for value in exact] + [exact[0] // 10**3]
    random.Random(seed).shuffle(mixed)
    with pytest.raises(UserError, match="two forms"):
        read(mixed)


def test_every_bad_row_is_named():
    """Also among dates in rare forms, which are read one by one."""
    texts = pl.Series("timestamp", ["noon", "2024-W18-3", None, "soon", "20240501T120000,5"])
    with pytest.raises(RowsError, match="row 1 has timestamp 'noon'") as error:
        microseconds(texts, "log.csv")
    assert error.value.rows == [0, 2, 3]
    assert error.value.reason(3).startswith("timestamp 'soon'; expected")
