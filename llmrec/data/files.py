"""Read the user's files as frames and records; each kind of mistake in them raises a UserError of one line."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.data.lines import find_encoding, is_packed, open_bytes, read_lines, read_text, undecoded
from llmrec.data.separated import POLARS_ERRORS, SeparatedFile
from llmrec.data.text import leaves, parse_literal
from llmrec.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of tables; all except .parquet may be followed by .gz."""

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


ITEM_NAMES = "; set --data.columns.item for the events, and --data.columns.item_in_items if the items differ"
"""Hint for `require_column`: the columns of item ids in the two tables."""


def require_column(frame: pl.DataFrame, column: str, source: str | Path, flag: str, hint: str = "") -> None:
    """If `frame` does not have `column`, raise a UserError that names `flag` and ends with `hint`."""
    if column not in frame.columns:
        found = ", ".join(repr(name) if name != name.strip() or "," in name else name for name in frame.columns)
        if any(name.strip().replace(".", "", 1).isdecimal() for name in frame.columns):
            hint = "; the first line seems to be a row: write a line with the names of the columns above it"
        raise UserError(f"{source}: no column {column!r} ({flag}); found: {found or 'no columns'}{hint}")


def read_json(path: Path) -> Any:
    """The JSON document in a file; for malformed JSON raises UserError, if possible with the line of the mistake."""
    encoding = find_encoding(path, TextOptions())
    text = read_text(path, encoding)
    if wrong := undecoded(text, encoding):
        raise UserError(f"{path}: {wrong}; save it as UTF-8")
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


def read_records(
    path: Path, python_literals: bool = False, options: TextOptions | None = None, bad: BadRows | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) from a file with one JSON object per line; line numbers start at 1.

    With `python_literals` a line may also be a Python dict, as in the Amazon metadata of 2014.

    Args:
        path: the file; .gz is decompressed.
        python_literals: whether a line may also be a Python dict.
        options: the encoding and the policy for bad rows.
        bad: the file's bad rows, if the caller adds and reports some too.

    Raises:
        UserError: for a file that cannot be read, and for the first line that is not such a record, with its number.
    """
    rows = bad or BadRows(path, options or TextOptions())
    for number, line in read_lines(path, options, rows):
        try:
            yield number, _parse_record(line, python_literals)
        except ValueError as error:
            rows.add(f"line {number}", str(error))
    if bad is None:
        rows.report()


def _parse_record(line: str, python_literals: bool) -> dict[str, Any]:
    """The record in a line; raises ValueError with the reason if there is none."""
    try:
        record = _parse_json(line)
    except (ValueError, RecursionError) as error:
        if not python_literals:
            raise ValueError(f"malformed JSON: {error}") from None
        try:
            record = parse_literal(line)
        except ValueError:
            raise ValueError(f"neither JSON nor a Python dict: {error}") from None
    if not _is_record(record):
        raise ValueError(f"found {type(record).__name__}, expected an object {{...}}")
    return record


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def records_frame(path: Path, options: TextOptions | None = None) -> pl.DataFrame:
    """JSON objects as a frame: one column per field, null where an object lacks the field.

    The file has one object per line, or is one list of objects.
    """
    columns: dict[str, list[Any]] = {}
    count = 0
    records = _listed_records(path) if _is_list(path) else read_records(path, options=options)
    for count, (_, record) in enumerate(records, 1):
        for name, value in record.items():
            column = columns.setdefault(name, [])
            column += [None] * (count - 1 - len(column))  # earlier records lack the field
            column.append(value)
    return pl.DataFrame([_column(name, values + [None] * (count - len(values))) for name, values in columns.items()])


def _is_list(path: Path) -> bool:
    """Whether the file begins as a list of JSON objects does."""
    encoding = find_encoding(path, TextOptions())
    with open_bytes(path) as file:
        start = file.read(2**12).decode(encoding, "ignore").split(maxsplit=1)
    return "".join(start)[:2] in ("[", "[{", "[]")


def _listed_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, record) for each object of a list; the numbers start at 1."""
    document = read_json(path)
    for number, record in enumerate(document, 1):
        if not _is_record(record):
            raise UserError(f"{path}: entry {number} is {type(record).__name__}, expected an object {{...}}")
        yield number, record


def _column(name: str, values: list[Any]) -> pl.Series:
    """A column of JSON values: lists and objects become their values joined with ", "; mixed types become text."""
    flat = [", ".join(map(str, leaves(value))) if isinstance(value, list | dict) else value for value in values]
    try:
        return pl.Series(name, flat, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(name, [value if value is None else str(value) for value in flat], dtype=pl.String)


def table_kind(path: Path) -> str:
    """The suffix that says what a table is, in small letters and without .gz: ".csv" for Items.CSV.gz."""
    return Path(path.stem if is_packed(path) else path).suffix.lower()


def read_table(
    path: str | Path,
    flag: str = "--data.path",
    options: TextOptions | None = None,
    used: Collection[str] | None = None,
) -> pl.DataFrame:
    """Read a table: CSV or TSV (all columns as text), JSON objects (one per line, or one list of them), or parquet.

    All except parquet may be compressed as .gz.

    Args:
        path: the file; its suffix decides how it is read.
        flag: the setting that the path came from, for messages.
        options: encoding, quoting and the policy for bad rows.
        used: the columns that the caller needs, None for all. If the name of one stands twice in a header, the table is
            refused; the second of two other columns of the same name is left out, and the log says so.

    Raises:
        UserError: for a file that is missing or unreadable, or has an unknown suffix.
    """
    path = require_file(path, flag)
    kind = table_kind(path)
    if kind in (".csv", ".tsv"):
        return read_separated(path, "\t" if kind == ".tsv" else ",", options, detect=True, used=used)
    if kind in (".jsonl", ".ndjson", ".json"):
        return records_frame(path, options)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    raise UserError(f"{flag}: {path}: unknown kind of file; expected {', '.join(SUFFIXES)} (text also .gz)")


def row_places(path: Path, rows: list[int], options: TextOptions) -> list[str]:
    """Where rows of the table that `read_table` read stand in its file, such as "line 7"; rows are numbered from 0."""
    kind, passed = table_kind(path), replace(options, bad_rows="drop")
    if kind in (".csv", ".tsv"):
        lines = SeparatedFile(path, "\t" if kind == ".tsv" else ",", options, detect=True).lines(rows)
        return [f"line {line}" for line in lines]
    if kind == ".parquet" or _is_list(path):
        return [f"row {row + 1}" for row in rows]
    quiet = BadRows(path, passed)
    found = {at: number for at, (number, _) in enumerate(read_records(path, options=passed, bad=quiet)) if at in rows}
    return [f"line {found[row]}" for row in rows]


def read_separated(
    path: Path,
    separator: str,
    options: TextOptions | None = None,
    detect: bool = False,
    used: Collection[str] | None = None,
) -> pl.DataFrame:
    """Read a table with a header and a separator between columns; all columns are text.

    Args:
        path: the file.
        separator: one character, such as ",".
        options: encoding, quoting and the policy for bad rows.
        detect: whether the file may have another separator, which is then found from its header.
        used: the columns that the caller needs, as for `read_table`.

    Raises:
        UserError: for a file that is not such a table.
    """
    return SeparatedFile(path, separator, options or TextOptions(), detect, used).frame()


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, glob=False)
    except POLARS_ERRORS as error:
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
