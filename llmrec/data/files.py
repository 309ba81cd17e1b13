"""Files of the user as frames and records; every way they can be wrong is one UserError line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any

import polars as pl

from llmrec.data.text import parse_literal
from llmrec.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Kinds of table; all but parquet also with .gz."""


def require_file(path: str | PathLike[str], flag: str = "--data.path") -> Path:
    """`path` as a Path; raises UserError naming `flag` unless it is a file."""
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing there"
        raise UserError(f"{flag}: {path}: expected a file, found {found}; check the path")
    return path


def require_folder(path: str | PathLike[str], flag: str = "--data.path") -> Path:
    """`path` as a Path; raises UserError naming `flag` unless it is a folder."""
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.is_file() else "nothing there"
        raise UserError(f"{flag}: {path}: expected a folder, found {found}; check the path")
    return path


def require_column(frame: pl.DataFrame, column: str, source: str | PathLike[str], flag: str) -> None:
    """Raise UserError naming `flag` unless `frame` has `column`."""
    if column not in frame.columns:
        found = ", ".join(frame.columns) or "no columns"
        raise UserError(f"{source}: no column {column!r} ({flag}); found: {found}")


def id_column(values: pl.Series, source: str) -> pl.Series:
    """The ids as text; whole floats lose their ".0" so that they meet the same ids written as integers.

    Raises:
        UserError: for ids that are neither text nor numbers, or missing in some row.
    """
    if values.dtype.is_float() and (values == values.round()).all():
        values = values.cast(pl.Int64, strict=False)
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        raise UserError(f"{source}: {values.name} holds {values.dtype}; expected text or numbers")
    texts = values.cast(pl.String)
    missing = (texts.is_null() | (texts == "")).arg_true()
    if len(missing):
        raise UserError(f"{source}: row {missing[0] + 1} has no {values.name}; expected one in every row")
    return texts


def open_text(path: Path, encoding: str = "utf-8") -> IO[str]:
    """The file's text, unpacked when its name ends in .gz."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, newline="\n")


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of all lines that are not blank; raises UserError."""
    number = 0
    try:
        with open_text(path, encoding) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: after line {number}: not {encoding} text ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from None


def read_json(path: Path) -> Any:
    """The JSON document in a file; raises UserError with the line of the first mistake."""
    text = "\n".join(line for _, line in _all_lines(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None


def _all_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Like `read_lines`, with the blank lines, so that a parser's line numbers stay true."""
    expected = 1
    for number, line in read_lines(path):
        yield from ((blank, "") for blank in range(expected, number))
        yield number, line
        expected = number + 1


def read_records(path: Path, python_literals: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) from a file with one JSON object a line.

    With `python_literals` a line may also be a Python dict, as in the Amazon metadata of 2014.

    Raises:
        UserError: with the file and line of the first line that is no such record.
    """
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not python_literals:
                raise UserError(f"{path}, line {number}: malformed JSON: {error}") from None
            try:
                record = parse_literal(line)
            except ValueError:
                raise UserError(f"{path}, line {number}: neither JSON nor a Python dict: {error}") from None
        if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
            raise UserError(
                f"{path}, line {number}: found {type(record).__name__}, expected an object {{...}}"
            )
        yield number, record


def records_frame(path: Path) -> pl.DataFrame:
    """All fields of a file with one JSON object a line; a field whose values differ in kind becomes text."""
    rows = [record for _, record in read_records(path)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame([mixed_column(name, [row.get(name) for row in rows]) for name in names])


def mixed_column(name: str, values: list[Any]) -> pl.Series:
    """A column of JSON values: of their own type where they agree, as text (lists: lists of text) otherwise."""
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        if any(isinstance(value, list) for value in values):
            lists = [value if value is None or isinstance(value, list) else [value] for value in values]
            texts = [row and [_as_text(value) for value in row if value is not None] for row in lists]
            return pl.Series(name, texts, dtype=pl.List(pl.String))
        return pl.Series(name, [_as_text(value) for value in values], dtype=pl.String)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def read_table(path: str | PathLike[str], flag: str = "--data.path") -> pl.DataFrame:
    """A CSV or TSV file (all columns as text), one JSON object a line, or parquet; text files also as .gz.

    Raises:
        UserError: for a missing, unreadable or unknown kind of file; `flag` names the setting it came from.
    """
    path = require_file(path, flag)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind in (".csv", ".tsv"):
        return read_separated(path, "\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".ndjson", ".json"):
        return records_frame(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise UserError(f"{flag}: {path}: unknown kind of file; expected {', '.join(SUFFIXES)} (text also .gz)")


def read_separated(path: Path, separator: str) -> pl.DataFrame:
    """A CSV file with a header, all columns as text, so that an id such as 0042 stays as it is."""
    try:
        return pl.read_csv(path, separator=separator, infer_schema=False, missing_utf8_is_empty_string=True)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{path}: not a readable table with {separator!r} between columns: {reason}"
        ) from None


def _read_parquet(path: Path) -> pl.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pl.from_arrow(pq.read_table(path))
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PolarsError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path}: not a readable parquet file: {reason}") from None
    assert isinstance(frame, pl.DataFrame)
    return frame
