"""Times of events: any common form becomes whole microseconds since 1970 (UTC).

    1714564800, 1714564800.05    a number: seconds, milli-, micro- or nanoseconds; the size tells which
    20240501, 20240501120000     a number of 8, 12 or 14 digits that is a date
    2024-05-01 12:00:00.050      an ISO date; without a time zone it is UTC

All values of a column have the same form. A column with two forms is refused, since one of them would be read wrongly.
"""

from bisect import bisect
from datetime import UTC, datetime, timedelta

import polars as pl

from llmrec.data.bad_rows import RowsError
from llmrec.errors import UserError

DAY = 86_400 * 10**6
"""Microseconds of a day."""

_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_UNITS_FROM = (10**11, 10**14, 10**17)
"""Numbers from these on are milliseconds, microseconds, nanoseconds; below the first, they are seconds. Each number is
a time of March 1973 in its own unit, and of the year 5138 in the unit before."""
_TOO_LARGE = 1e20  # the year 5138 in nanoseconds
# Format and range of numbers that are dates. As seconds or milliseconds they would be in August 1970, between January
# and August 1976, and after the year 2570.
_CALENDAR = (
    ("%Y%m%d", 19000101, 21001231),
    ("%Y%m%d%H%M", 190001010000, 210012312359),
    ("%Y%m%d%H%M%S", 19000101000000, 21001231235959),
)
_ISO = [
    f"%Y{dash}%m{dash}%d{time}{zone}"
    for dash in ("-", "/")
    for zone in ("", "%#z", " UTC")
    for time in ("T%H:%M:%S%.f", " %H:%M:%S%.f", "T%H:%M", " %H:%M", "")
    if time or not zone
]
_YEAR_1000 = -30_610_224_000 * 10**6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(values: pl.Series, source: str) -> pl.Series:
    """Times as int64 microseconds since 1970 (UTC), null in all rows if `values` is.

    Args:
        values: E numbers, dates, or texts with one of them.
        source: name of the data in messages.

    Raises:
        UserError: a value is missing or can't be read, or two values have different forms.
    """
    times = pl.Series("timestamp", [None] * len(values), dtype=pl.Int64)
    if values.null_count() == len(values):
        return times
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype in (pl.Date, pl.Datetime):
        times = values.dt.epoch("us")
    elif values.dtype == pl.String:
        times = _from_texts(values, source)
    elif values.dtype.is_numeric():
        times = _from_numbers(_as_numbers(values), values, source)[0]
    bad = times.is_null().arg_true()
    if len(bad):
        expected = "a number of seconds, milli-, micro- or nanoseconds, or a date such as 2024-05-31 12:00:00"
        raise RowsError(source, bad.to_list(), lambda row: f"timestamp {_shown(values[row])}; expected {expected}")
    return times.alias("timestamp")


def date(moment: int) -> str:
    """Microseconds since 1970 (UTC) as a date: 1714564800000000 -> "2024-05-01 12:00:00"."""
    return (_EPOCH + timedelta(microseconds=moment)).replace(tzinfo=None).isoformat(" ")


def _as_numbers(values: pl.Series) -> pl.Series:
    """The numbers as Int64 if all are whole, otherwise as Float64; null for a number that is no time."""
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    numbers = values.cast(pl.Float64, strict=False)
    numbers = numbers.set(~(numbers.abs() < _TOO_LARGE), None)
    if (numbers == numbers.round()).all() and (numbers.abs() < 2**63).all():
        return numbers.cast(pl.Int64)
    return numbers


def _from_numbers(numbers: pl.Series, values: pl.Series, source: str) -> tuple[pl.Series, bool]:
    """Times of the numbers, and whether the numbers are dates; `values` are the same rows as the user wrote them."""
    for pattern, low, high in _CALENDAR:
        inside = numbers.is_between(low, high)
        if not inside.any():
            continue
        dates = numbers.filter(inside).cast(pl.Int64).cast(pl.String)
        dates = dates.str.to_datetime(pattern, strict=False, time_unit="us").dt.epoch("us")
        if dates.null_count() * 2 >= len(dates):
            continue  # of other numbers in the range, less than 4 in 100 happen to be dates
        _refuse_mix(inside, "a date", ~inside, "a number that is no date", values, source)
        times = pl.Series([None] * len(numbers), dtype=pl.Int64)
        return times.scatter(inside.arg_true(), dates), True
    sizes = numbers.abs()
    largest = sizes.max()
    if largest is None:
        return numbers.cast(pl.Int64), False
    unit = bisect(_UNITS_FROM, largest)
    if unit:
        smaller = (sizes < _UNITS_FROM[unit - 1]) & (sizes > 0)
        if smaller.any():
            other = _UNITS[bisect(_UNITS_FROM, sizes.filter(smaller)[0])]
            _refuse_mix(smaller, other, sizes >= _UNITS_FROM[unit - 1], _UNITS[unit], values, source)
    if unit == 3:
        return (numbers // 1000).cast(pl.Int64), False
    times = numbers * 10 ** (6 - 3 * unit)
    return (times if times.dtype == pl.Int64 else times.round().cast(pl.Int64)), False


def _from_texts(values: pl.Series, source: str) -> pl.Series:
    texts = values.str.strip_chars()
    numbers = texts.cast(pl.Int64, strict=False)
    if numbers.null_count():
        with_fractions = _as_numbers(texts.cast(pl.Float64, strict=False))
        if with_fractions.null_count() < numbers.null_count():
            numbers = with_fractions
    if not numbers.null_count():
        return _from_numbers(numbers, values, source)[0]
    others = numbers.is_null()
    dates = _from_dates(texts.filter(others))
    if others.all():
        return dates
    times, are_dates = _from_numbers(numbers, values, source)
    dated = pl.Series([False] * len(values)).scatter(others.arg_true(), dates.is_not_null())
    if not are_dates:
        _refuse_mix(~others, "a number", dated, "a date", values, source)
    return times.scatter(others.arg_true(), dates)


def _from_dates(texts: pl.Series) -> pl.Series:
    """Times of ISO dates, null for a text that is none; each format is tried on the texts that none before it reads."""
    times = pl.Series([None] * len(texts), dtype=pl.Int64)
    for pattern in _ISO:
        rest = times.is_null().arg_true()
        if not len(rest):
            return times
        dates = texts.gather(rest).str.to_datetime(pattern, strict=False, time_unit="us").dt.epoch("us")
        times = times.scatter(rest, dates.set(dates < _YEAR_1000, None))  # 24-05-01 is not a date of the year 24
    rest = times.is_null().arg_true()
    moments = {text: _parse_rare(text) for text in texts.gather(rest).unique()}
    return times.scatter(rest, texts.gather(rest).replace_strict(moments, default=None, return_dtype=pl.Int64))


def _parse_rare(text: str | None) -> int | None:
    """The time of an ISO date in a form such as 2024-W18-3 or 20240501T120000,5; None for any other text."""
    try:
        moment = datetime.fromisoformat(text or "")
        return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None


def _refuse_mix(
    first: pl.Series, is_first: str, second: pl.Series, is_second: str, values: pl.Series, source: str
) -> None:
    """Raise a UserError if both masks have a row; the message shows the first row of each."""
    rows = [mask.arg_true() for mask in (first, second)]
    if all(len(row) for row in rows):
        one, other = ((row[0], _shown(values[row[0]])) for row in rows)
        raise UserError(
            f"{source}: the timestamps have two forms: row {one[0] + 1} has {one[1]} ({is_first}), row "
            f"{other[0] + 1} has {other[1]} ({is_second}); write all of them in one form"
        )


def _shown(value: object) -> str:
    return f"{value!r:.80}"
