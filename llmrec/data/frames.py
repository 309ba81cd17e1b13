"""Tables of other libraries as polars frames."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.checks import found
from llmrec.errors import UserError, system_words


def as_frame(table: Any, source: str) -> pl.DataFrame:
    """The table as a polars frame, with null for NaN of pandas.

    Args:
        table: a polars, pandas or Arrow table, a list of rows (dicts), or a dict of columns.
        source: name of the data in messages.

    Raises:
        UserError: it is something else, or a column holds values of several types.
    """
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    rows = isinstance(table, list) and all(isinstance(row, dict) for row in table)
    if not rows and not isinstance(table, dict) and not hasattr(table, "columns"):
        raise UserError(
            f"{source}: found {found(table)}, expected a polars or pandas table, a list of dicts or a dict of columns; "
            "from_file reads files."
        )
    try:
        if rows:
            return pl.DataFrame(table, infer_schema_length=None)
        return pl.DataFrame(table, nan_to_null=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{source}: {found(table)} that can't be read as a table: {reason}; give each column one type."
        ) from None


def check_columns(frame: Any, columns: Mapping[str, tuple[Any, ...]], kind: type, made_by: str) -> None:
    """Check that a frame has the columns of a class of this room, each of one of the given dtypes.

    Raises:
        UserError: it is no frame of polars, or a column is missing or has another type. The message says that
            `made_by` makes the class.
    """
    fix = f"make the {kind.__name__} with {made_by}"
    if not isinstance(frame, pl.DataFrame):
        raise UserError(f"{kind.__name__}: found {found(frame)}, expected a polars DataFrame; {fix}.")
    for name, dtypes in columns.items():
        dtype = frame.schema.get(name)
        if dtype not in dtypes:
            held = "no column" if dtype is None else f"a column of {dtype}"
            raise UserError(f"{kind.__name__}: found {held} {name!r}, expected one of {dtypes[0]}; {fix}.")


@contextmanager
def written(path: str | Path) -> Iterator[None]:
    """Raise a UserError that names the file if it can't be written."""
    try:
        yield
    except OSError as error:
        reason = "it is a folder" if Path(path).is_dir() else system_words(error)
        raise UserError(f"{path}: can't be written ({reason}); name a file in a folder that exists.") from None
