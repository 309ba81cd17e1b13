"""Ids of users and items: one form for the same id, whatever file it came from.

101, 101.0, decimal 101.00, b"101", "101"    -> "101"
["101", "102.0"]                             -> ["101", "102"]: a column of whole numbers
["101.0", "B7"], "0042", "B 1 "              stay as they are
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from llmrec.checks import found, listed
from llmrec.data.bad_rows import RowsError
from llmrec.errors import UserError

_WHOLE_NUMBER = r"^[+-]?\d+(\.0+)?$"
_INVISIBLE = r"[\u200b\u2060\ufeff]"
_UNUSUAL = r"^\s|\s$|\s\s|[^\x20-\x7e]"
"""Only an id with such a character has another one that looks the same."""


def is_id(value: Any) -> bool:
    """Whether a value of a JSON file is an id: a text that is not empty, or a whole number."""
    return (
        type(value) is int or (type(value) is str and value != "") or (isinstance(value, float) and value.is_integer())
    )


def id_column(values: pl.Series, source: str) -> pl.Series:
    """The ids as text. In a column of whole numbers, 101.0 becomes 101; leading zeros stay.

    Raises:
        UserError: for ids that are neither text nor numbers, a row without an id, or float numbers so large that two
            different ids may be equal.
    """
    if values.dtype.is_float():
        values = _whole_floats(values, source)
    if values.dtype == pl.Binary:
        texts = _decoded(values, source)
    elif values.dtype.is_numeric() or values.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        texts = values.cast(pl.String)
    else:
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected text or numbers")
    missing = (texts.is_null() | (texts == "")).arg_true()
    if len(missing):
        raise RowsError(source, missing.to_list(), lambda row: f"no {values.name}; expected one in every row")
    return texts if values.dtype.is_integer() else _without_zero_fractions(texts)


def id_list(values: Any, name: str) -> list[str]:
    """Ids of items that a caller names, as the catalogue writes them: 101, 101.0 and "101" are "101".

    Args:
        values: a list, an array, a column or a generator of ids.
        name: what the error message calls them.

    Raises:
        UserError: `values` is none of these, or one of them is no id.
    """
    ids = listed(values, name, "a list of item ids")
    if all(type(item) is str for item in ids):
        return ids
    for place, item in enumerate(ids):
        if isinstance(item, str):
            ids[place] = str(item)
        elif _is_whole(item):
            ids[place] = str(int(item))
        else:
            raise UserError(
                f"{name}: entry {place + 1} is {found(item)}, expected an item id, which is text or a whole number."
            )
    return ids


def _is_whole(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole or (isinstance(value, float | np.floating) and value.is_integer())


def rows_of(ids: pl.Series, wanted: Sequence[str]) -> np.ndarray:
    """The row of each of the n `wanted` ids among the N distinct `ids`, int64 [n]; -1 for an id that is not there.

    It makes one pass over `ids` and no dictionary of them, which for ten million takes seconds and a gigabyte.
    """
    rows = ids.is_in(pl.Series(wanted, dtype=pl.String).implode()).arg_true()
    row_of = dict(zip(ids.gather(rows).to_list(), rows.to_list(), strict=True))
    return np.array([row_of.get(item, -1) for item in wanted], np.int64)


def _whole_floats(values: pl.Series, source: str) -> pl.Series:
    values = values.fill_nan(None)
    if not (values == values.round()).all():
        return values
    exact = 2**53 if values.dtype == pl.Float64 else 2**24
    large = values.filter(values.abs() > exact)
    if len(large):
        raise UserError(
            f"{source}: {values.name} holds {large[0]!r} as {values.dtype}, which rounds whole numbers above "
            f"{exact:,}; write the ids as whole numbers or text"
        )
    return values.cast(pl.Int64)


def _decoded(values: pl.Series, source: str) -> pl.Series:
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise UserError(
            f"{source}: {values.name} holds bytes that are not UTF-8 text; write the ids as text (hexadecimal, say)"
        ) from None


def _without_zero_fractions(texts: pl.Series) -> pl.Series:
    few = texts.head(1000)  # most columns of text are known not to be numbers from their first rows
    if not few.str.contains(_WHOLE_NUMBER).all() or not texts.str.contains(".0", literal=True).any():
        return texts
    if not texts.str.contains(_WHOLE_NUMBER).all():
        return texts
    return texts.str.replace(r"\.0+$", "")


def looks(ids: pl.Series) -> pl.Series:
    """The ids in Unicode normal form C, with single spaces, and none at the ends: equal for ids that look the same."""
    visible = ids.str.normalize("NFC").str.replace_all(_INVISIBLE, "")
    return visible.str.replace_all(r"\s+", " ").str.strip_chars()


def look_alikes(ids: pl.Series) -> list[tuple[str, str]]:
    """Pairs of ids that look the same.

    Args:
        ids: distinct ids.
    """
    if not ids.str.contains(_UNUSUAL).any():
        return []
    frame = pl.DataFrame({"id": ids, "looks": looks(ids)})
    pairs = frame.group_by("looks", maintain_order=True).agg(pl.col("id").head(2)).filter(pl.col("id").list.len() == 2)
    return [(first, second) for first, second in pairs["id"].to_list()]


def difference(unknown: pl.Series, known: pl.Series) -> str | None:
    """In what most ids of `unknown` differ from ids of `known`, in words; None if nothing common makes them equal."""
    forms: Sequence[tuple[str, pl.Expr]] = (
        ("white space or Unicode form", pl.col("id")),
        ("upper and lower case", pl.col("id").str.to_lowercase()),
        ("zeros after the point", pl.col("id").str.replace(r"\.0+$", "")),
        ("leading zeros", pl.col("id").str.strip_chars_start("0")),
    )
    frames = [pl.DataFrame({"id": looks(ids.unique())}) for ids in (unknown, known)]
    for words, form in forms:
        ours, theirs = (frame.select(form)["id"] for frame in frames)
        if ours.is_in(theirs.implode()).mean() > 0.5:  # type: ignore[operator]  # a number
            return words
    return None
