"""Read the user's files as frames and records; each kind of mistake in them raises a UserError of one line."""

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from llmrec.data.text import leaves, parse_literal
from llmrec.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of tables; all except .parquet may be followed by .gz."""

_ENCODING = "utf-8-sig"  # UTF-8, with or without a byte order mark
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
EXPANSION = 64
"""Factor by which a stored table may be larger in memory than its file."""
SMALL = 2**26
"""Bytes in memory that a stored table may always take, even if its file is very small."""


def require_file(path: str | Path, flag: str = "--data.path") -> Path:
    """`path` as a Path; if it is not a file, raises a UserError that names `flag`."""
    path = Path(path)
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "nothing there"
        raise UserError(f"{flag}: {path}: expected a file, found {found}; check the path")
    return path


def require_folder(path: str | Path, flag: str = "--data.path") -> Path:
    """`path` as a Path; if it is not a folder, raises a UserError that names `flag`."""
    path = Path(path)
    if not os.path.isdir(path):
        found = "a file" if os.path.isfile(path) else "nothing there"
        raise UserError(f"{flag}: {path}: expected a folder, found {found}; check the path")
    return path


def require_column(frame: pl.DataFrame, column: str, source: str | Path, flag: str) -> None:
    """If `frame` does not have `column`, raise a UserError that names `flag`."""
    if column not in frame.columns:
        found = ", ".join(frame.columns) or "no columns"
        raise UserError(f"{source}: no column {column!r} ({flag}); found: {found}")


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open the file as text; a file whose name ends in .gz is decompressed."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, newline="\n")


def _all_lines(path: Path, encoding: str) -> Iterator[str]:
    number = 0
    try:
        with open_text(path, encoding) as file:
            for line in file:
                yield line
                number += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: after line {number}: not {encoding} text ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from None


def read_lines(path: Path, encoding: str = _ENCODING) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) for each line that is not blank.

    Line numbers start at 1. Lines come without their line ends.

    Raises:
        UserError: for a file that cannot be read or is not text in this encoding.
    """
    for number, line in enumerate(_all_lines(path, encoding), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def read_json(path: Path) -> Any:
    """The JSON document in a file; for malformed JSON raises UserError, if possible with the line of the mistake."""
    text = "".join(_all_lines(path, _ENCODING))
    try:
        return _parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None


def _parse_json(text: str) -> Any:
    """json.loads that also raises ValueError for a repeated key and for a lone surrogate (half of a pair)."""
    value = json.loads(text, object_pairs_hook=_unique_keys)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} stands twice in one object; keep one of them")
    return record


def read_records(path: Path, python_literals: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) from a file with one JSON object per line; line numbers start at 1.

    With `python_literals` a line may also be a Python dict, as in the Amazon metadata of 2014.

    Raises:
        UserError: for the first line that is not such a record; the message has the file and the line number.
    """
    for number, line in read_lines(path):
        try:
            record = _parse_json(line)
        except (ValueError, RecursionError) as error:
            if not python_literals:
                raise UserError(f"{path}, line {number}: malformed JSON: {error}") from None
            try:
                record = parse_literal(line)
            except ValueError:
                raise UserError(f"{path}, line {number}: neither JSON nor a Python dict: {error}") from None
        if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
            raise UserError(f"{path}, line {number}: found {type(record).__name__}, expected an object {{...}}")
        yield number, record


def records_frame(path: Path) -> pl.DataFrame:
    """A file with one JSON object per line as a frame: one column per field, null where an object lacks the field."""
    columns: dict[str, list[Any]] = {}
    count = 0
    for count, (_, record) in enumerate(read_records(path), 1):
        for name, value in record.items():
            column = columns.setdefault(name, [])
            column += [None] * (count - 1 - len(column))  # earlier records lack the field
            column.append(value)
    return pl.DataFrame([_column(name, values + [None] * (count - len(values))) for name, values in columns.items()])


def _column(name: str, values: list[Any]) -> pl.Series:
    """A column of JSON values: lists and objects become their values joined with ", "; mixed types become text."""
    flat = [", ".join(map(str, leaves(value))) if isinstance(value, list | dict) else value for value in values]
    try:
        return pl.Series(name, flat, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(name, [value if value is None else str(value) for value in flat], dtype=pl.String)


def read_table(path: str | Path, flag: str = "--data.path") -> pl.DataFrame:
    """Read a table: CSV or TSV (all columns as text), a file with one JSON object per line, or parquet.

    All except parquet may be compressed as .gz.

    Args:
        path: the file; its suffix decides how it is read.
        flag: the setting that the path came from, for messages.

    Raises:
        UserError: for a file that is missing or unreadable, or has an unknown suffix.
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


def read_separated(path: Path, separator: str, quoted: bool = True) -> pl.DataFrame:
    """Read a table with a header and a separator between columns; all columns are text, so the id 0042 stays 0042.

    Args:
        path: the file.
        separator: one character, such as ",".
        quoted: whether double quotes around a value are quotation marks.

    Raises:
        UserError: for a file that is not such a table.
    """
    quote = '"' if quoted else None
    try:
        frame = pl.read_csv(path, separator=separator, infer_schema=False, glob=False, quote_char=quote)
        if any("_duplicated_" in name for name in frame.columns):  # as polars renames the second of two equal names
            header = pl.read_csv(
                path, separator=separator, infer_schema=False, glob=False, quote_char=quote, has_header=False, n_rows=1
            )
            _refuse_repeated(header.row(0), path)
        return frame
    except _POLARS_ERRORS as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path}: not a readable table with {separator!r} between columns: {reason}") from None


def _refuse_repeated(names: Sequence[str | None], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{path}, line 1: column {twice[0]!r} stands twice; rename or remove one of them")


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except _POLARS_ERRORS as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path}: not a readable parquet file: {reason}") from None


def read_stored(path: Path) -> pl.DataFrame:
    """Read a parquet table that llmrec wrote, with a check of its size in memory.

    The file may come from a stranger, and a small file can expand to a very large table. The rows, the values, the
    uncompressed bytes and the bytes of text must each be at most max(SMALL, EXPANSION * size of the file).

    Raises:
        UserError: the file is missing or damaged, or its table is too large.
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowException, types

    try:
        size = path.stat().st_size
        most = max(SMALL, EXPANSION * size)
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
            columns = [group.column(at) for group in groups for at in range(group.num_columns)]
            rows, values = file.metadata.num_rows, sum(column.num_values for column in columns)
            texts = (types.is_string, types.is_large_string)
            text = [field.name for field in file.schema_arrow if any(is_text(field.type) for is_text in texts)]
        if max(rows, values, sum(column.total_uncompressed_size for column in columns)) > most:
            raise UserError(f"{path}: {size:,} bytes hold {rows:,} rows, more than such a file can mean.")
        with pq.ParquetFile(path, read_dictionary=text) as file:
            table = file.read()
        if sum(_text_bytes(table.column(name)) for name in text) > most:
            raise UserError(f"{path}: {size:,} bytes hold more than {most:,} bytes of text.")
        frame = pl.from_arrow(table)
    except UserError:
        raise
    except (OSError, ArrowException, pl.exceptions.PolarsError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: can't be read: {reason}") from None
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(name).cast(pl.String) for name in text)


def _text_bytes(column: Any) -> int:
    """Size in bytes of a dictionary-encoded text column without the dictionary encoding."""
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        if not len(chunk.dictionary):
            continue
        lengths = pc.fill_null(pc.binary_length(chunk.dictionary), 0).to_numpy()
        used = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(lengths))
        total += int(used.astype(np.float64) @ lengths)
    return total
