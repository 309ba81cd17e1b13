"""Tables with a header and a separator between columns, such as CSV and TSV, in any dialect.

polars reads the files whose quotation marks follow the standard (RFC 4180). This module reads all others, in the
dialect that fits all rows: marks inside a field are ordinary characters, or a backslash escapes them, or all marks are
ordinary characters. Both ways give the same table for a standard file.
"""

import codecs
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from llmrec.console import get_logger
from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.data.lines import NAME_ENCODING, find_encoding, open_bytes, read_text, undecoded
from llmrec.errors import UserError

log = get_logger(__name__)

POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
SEPARATORS = (",", ";", "\t", "|")
_CHUNK = 2**24
_BLOCK = 2**16
_HEAD = 2**16
_SPACE = " \t\r\n\v\f"
_QUOTED = re.compile('"(?:[^"]|"")*+"')
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*?\r?\n?", re.IGNORECASE)  # Excel writes it above the header


class Dialect(NamedTuple):
    """How quotation marks are read. {end} in `outside` stands for the characters that end a field."""

    words: str
    """the dialect in a message"""
    inside: str
    """pattern of the text between two quotation marks; empty if marks are ordinary characters"""
    outside: str
    """pattern of a field without quotation marks around it"""
    escaped: str
    """pattern of an escaped character; its group is the character, or nothing for a quotation mark"""


STANDARD = Dialect("as in RFC 4180", '(?:[^"]|"")*+', '[^"{end}]*+', '""')
RELAXED = STANDARD._replace(words="ordinary characters inside a field", outside='(?:(?!")[^{end}]++)?')
BACKSLASH = Dialect(
    "escaped by a backslash", r'(?:[^"\\]|""|\\.)*+', r'(?:(?!")(?:[^{end}\\]|\\.)++)?', r'\\([\W_])|""'
)
NONE = Dialect("ordinary characters (--data.quoting none)", "", "[^{end}]*+", "")


class Record(NamedTuple):
    """One row of the file: its fields (None for nothing between two separators), or what is wrong with it."""

    line: int
    """number of its first line, from 1"""
    fields: list[str | None]
    wrong: str


class Parser:
    """Splits a text into records."""

    def __init__(self, dialect: Dialect, separator: str, newline: str = "\n", after_space: bool = False) -> None:
        """`after_space`: whether the spaces after a separator belong to the separator."""
        self.dialect, self.separator, self.newline, self.after_space = dialect, separator, newline, after_space
        self._marks = "" if dialect is NONE else '"\\' if dialect is BACKSLASH else '"'
        plain = dialect.outside.replace("{end}", re.escape(separator) + newline)
        spaces = " *+" if after_space else ""
        self._field = re.compile(f'{spaces}(?:"(?P<quoted>{dialect.inside})"|(?P<plain>{plain}))', re.DOTALL)
        self._escaped = re.compile(dialect.escaped)

    def records(self, text: str) -> Iterator[Record]:
        """Yield a record for each row that holds something. After a wrong row, reading goes on in the next line."""
        place, line = 0, 1
        while place < len(text):
            end = text.find(self.newline, place)
            end = len(text) if end < 0 else end
            row, wrong = text[place:end].removesuffix("\r"), ""
            fields: list[str | None]
            if any(mark in row for mark in self._marks):
                fields, stop, wrong = self._split(text, place)
                end = end if wrong else stop
            elif self.after_space:
                fields = [field.lstrip(" ") or None for field in row.split(self.separator)]
            else:
                fields = [field or None for field in row.split(self.separator)]
            if wrong or any(field and field.strip(_SPACE) for field in fields):
                yield Record(line, fields, wrong)
            line += text.count(self.newline, place, end + 1)
            place = end + 1

    def _split(self, text: str, place: int) -> tuple[list[str | None], int, str]:
        """The fields of the record at `place`, where its line ends, and what is wrong with it."""
        fields: list[str | None] = []
        while True:
            found = self._field.match(text, place)
            assert found is not None  # the pattern matches the empty text too
            quoted, value, place = found["quoted"] is not None, found["quoted"] or found["plain"] or "", found.end()
            end = place + (text[place : place + 2] in ("\r", "\r" + self.newline))
            last = end == len(text) or text[end] == self.newline
            if not quoted and last:
                value = value.removesuffix("\r")
            if quoted or self.dialect is BACKSLASH:
                double = '"' if quoted else '""'
                value = self._escaped.sub(lambda mark, double=double: mark[1] if mark.lastindex else double, value)
            fields.append(value if quoted else value or None)
            if last:
                return fields, end, ""
            if text[place] != self.separator:
                return fields, end, self._wrong(text, place, quoted)
            place += 1

    def _wrong(self, text: str, place: int, quoted: bool) -> str:
        around = text[max(place - 10, text.rfind(self.newline, 0, place) + 1) : place + 10].partition(self.newline)[0]
        if quoted:
            return f"text follows the quotation mark that closes a field, at {around!r}"
        if text[place] == '"' and self.dialect is not STANDARD:
            return f"the quotation mark that opens a field is never closed, at {around!r}"
        return f"a quotation mark stands inside a field, at {around!r}"


@dataclass(frozen=True)
class SeparatedFile:
    """A table with a header; all columns are text, so the id 0042 stays 0042. Rows without any value are left out."""

    path: Path
    usual: str
    """the separator between columns in files of this kind"""
    options: TextOptions
    detect: bool = False
    """whether the file may have another separator"""
    used: Collection[str] | None = None
    """the columns whose names may stand only once, None for all"""

    @cached_property
    def encoding(self) -> str:
        """The name of the file's encoding."""
        return find_encoding(self.path, self.options)

    @cached_property
    def _head(self) -> str:
        """The beginning of the file."""
        with open_bytes(self.path) as file:
            return file.read(_HEAD).decode(self.encoding, "ignore")

    @cached_property
    def newline(self) -> str:
        """The character that ends a line; carriage returns alone end the lines of old Macs."""
        return "\r" if "\r" in self._head and "\n" not in self._head else "\n"

    @cached_property
    def separator(self) -> str:
        """The separator between columns: the most frequent one in the header that the next lines have as often."""
        if named := _SEPARATOR_LINE.match(self._head):
            return named[1]
        if not self.detect:
            return self.usual
        lines = [_QUOTED.sub("", line) for line in self._head.split(self.newline)[:8] if line.strip()]
        header, *rest = lines or [""]
        counts = {mark: header.count(mark) for mark in (self.usual, *SEPARATORS) if mark in header}
        fits = [mark for mark, n in counts.items() if all(line.count(mark) == n for line in rest if '"' not in line)]
        if not fits and self.usual in counts:
            return self.usual
        best = max(fits or counts, key=lambda mark: counts[mark], default=self.usual)  # the first of several
        if best != self.usual:
            log.info("%s: %r stands between the columns", self.path, best)
        return best

    @cached_property
    def _after_space(self) -> bool:
        """Whether a space follows each separator in the header."""
        dialect = NONE if self.options.quoting == "none" else RELAXED
        header = next(Parser(dialect, self.separator, self.newline).records(self._without_mark(self._head)), None)
        names = header.fields[1:] if header else []
        return bool(names) and all(name and name.startswith(" ") for name in names)

    def _without_mark(self, text: str) -> str:
        """`text` with an empty line in place of a line "sep=;", so that the line numbers stay."""
        return _SEPARATOR_LINE.sub("\n", text, count=1) if _SEPARATOR_LINE.match(text) else text

    def frame(self) -> pl.DataFrame:
        """Read the table.

        Raises:
            UserError: for a file that cannot be read or has no header, and for a bad row if the options say so.
        """
        frame = self._standard_frame()
        return self._parsed_frame() if frame is None else frame

    def _standard_frame(self) -> pl.DataFrame | None:
        """The table as polars reads it, or None for a file that polars may read wrongly or not at all."""
        quoted = self.options.quoting != "none"
        if self.encoding not in ("utf-8", "utf-8-sig") or self.newline != "\n" or _SEPARATOR_LINE.match(self._head):
            return None
        if not self._is_standard(quoted):
            return None
        header = next(self._parser(STANDARD if quoted else NONE).records(self._head), None)
        try:
            frame = pl.read_csv(
                self.path,
                separator=self.separator,
                infer_schema=False,
                glob=False,
                quote_char='"' if quoted else None,
            )
        except POLARS_ERRORS:
            return None
        if header is None or len(header.fields) != frame.width:
            return None
        if self._after_space:
            frame = frame.select(pl.all().str.strip_chars_start(" "))
        if (frame.to_series(0).fill_null("") < "!").any():  # a space or a line end is less, and so is an empty text
            frame = frame.filter(pl.any_horizontal(pl.all().str.strip_chars(_SPACE).fill_null("") != ""))
        return self._labelled(frame, header)

    def _is_standard(self, quoted: bool) -> bool:
        """Whether polars reads this UTF-8 file as the standard says.

        With `quoted`, the quotation marks take turns to open and to close. One that opens begins a field, or is the
        second of a doubled pair; one that closes ends a field, or is the first of a doubled pair. A carriage return
        stands only before a line feed.
        """
        before, after = (np.zeros(256, dtype=bool) for _ in range(2))
        separator = ord(self.separator)
        before[[separator, *b'\n"']] = after[[separator, *b'\r\n"']] = True
        opened = 0
        with open_bytes(self.path) as file:
            data = b"\n" + file.read(_CHUNK).removeprefix(codecs.BOM_UTF8)
            while data:
                more = file.read(_CHUNK)
                if not more:  # the end of the file ends a line
                    data += b"\n"
                letters = np.frombuffer(data, dtype=np.uint8)
                if quoted and b'"' in data:
                    marks = np.flatnonzero(letters[1:-1] == ord('"')) + 1
                    opens, closes = marks[opened::2], marks[1 - opened :: 2]
                    if not (before[letters[opens - 1]].all() and after[letters[closes + 1]].all()):
                        return False
                    opened = (opened + len(marks)) % 2
                if b"\r" in data:
                    returns = np.flatnonzero(letters[1:-1] == ord("\r")) + 1
                    if (letters[returns + 1] != ord("\n")).any() or (not more and data.endswith(b"\r\n")):
                        return False
                data = data[-2:] + more if more else b""
        return not opened

    def _parser(self, dialect: Dialect) -> Parser:
        return Parser(dialect, self.separator, self.newline, self._after_space)

    @cached_property
    def _text(self) -> str:
        """The whole text."""
        return self._without_mark(read_text(self.path, self.encoding))

    @cached_property
    def _best(self) -> Parser:
        """The parser of the first dialect that all records fit; if there is none, marks inside fields are ordinary
        characters, unless at most a tenth as many records break another dialect.

        Raises:
            UserError: for a file without a header.
        """
        dialects = {"none": [NONE], "standard": [STANDARD], "auto": [RELAXED, BACKSLASH, NONE]}[self.options.quoting]
        parsers = [self._parser(dialect) for dialect in dialects]
        if len(parsers) == 1:
            return parsers[0]
        fewest, best = None, parsers[0]
        for parser in parsers:
            wrong = self._misfits(parser)
            if wrong is not None and (fewest is None or 10 * wrong < fewest):
                fewest, best = wrong, parser
            if fewest == 0:
                break
        if best.dialect is not RELAXED:
            log.info("%s: quotation marks are read as %s", self.path, best.dialect.words)
        return best

    def _misfits(self, parser: Parser) -> int | None:
        """How many records do not fit the dialect; None if it is not the dialect of this file."""
        records = parser.records(self._text)
        header = next(records, None)
        if header is None or header.wrong:
            return None
        width, wrong = len(header.fields), 0
        proper = marked = 0
        for record in records:
            short = len(record.fields) < width and parser.dialect is not RELAXED
            wrong += bool(record.wrong) or any(record.fields[width:]) or short
            if parser.dialect is NONE:
                fields = [field for field in record.fields if field and '"' in field]
                proper += sum(_QUOTED.fullmatch(field) is not None for field in fields)
                marked += len(fields)
        # If most of these fields have their marks around them, the marks are no ordinary characters.
        return None if proper and 2 * proper >= marked else wrong

    def _good_records(self, bad: BadRows) -> Iterator[Record]:
        """Yield the header, then the good rows; the others go to `bad`. Each row gets as many fields as the header."""
        dirty, width = bool(undecoded(self._text, self.encoding)), 0
        for record in self._best.records(self._text):
            count = len(record.fields)
            wrong, fix = record.wrong, "write a mark inside quotation marks twice, set --data.quoting "
            fix += "auto or none" if self._best.dialect is STANDARD else "none"
            if not wrong and dirty:
                wrong = undecoded("".join(field or "" for field in record.fields), self.encoding)
                fix = NAME_ENCODING
            if not wrong and width and any(record.fields[width:]):
                wrong = f"{count} fields with {self.separator!r} between them, expected {width} as in the header"
                fix = "put values that hold this character in quotation marks"
            if wrong:
                header_row = BadRows(self.path, replace(self.options, bad_rows="fail"))  # without it, nothing is read
                (bad if width else header_row).add(f"line {record.line}", wrong, fix)
                continue
            width = width or count  # a row may lack its last fields, or have empty ones after them
            yield record._replace(fields=record.fields[:width] + [None] * (width - count))

    def _parsed_frame(self) -> pl.DataFrame:
        bad = BadRows(self.path, self.options)
        records = self._good_records(bad)
        header = next(records, None)
        if header is None:
            empty = " as the file is empty" if not self._text.strip() else ""
            raise UserError(
                f"{self.path}: no line of column names{empty}; expected one with {self.separator!r} between them"
            )
        schema = {str(place): pl.String for place in range(len(header.fields))}
        blocks = [pl.DataFrame(schema=schema)]
        while block := [record.fields for record in islice(records, _BLOCK)]:
            blocks.append(pl.DataFrame(block, schema=schema, orient="row"))
        bad.report()
        return self._labelled(pl.concat(blocks), header)

    def _labelled(self, frame: pl.DataFrame, header: Record) -> pl.DataFrame:
        """`frame` with the names of the header; a column without a name, or with the name of another, is left out.

        Raises:
            UserError: for two columns with one of the names in `used`.
        """
        columns: dict[str, pl.Series] = {}
        for place, field in enumerate(header.fields):
            name = (field or "").strip()
            if name in columns and (self.used is None or name in self.used):
                raise UserError(
                    f"{self.path}, line {header.line}: column {name!r} stands twice; rename or remove one of them"
                )
            if name and name not in columns:
                columns[name] = frame.to_series(place).alias(name)
            else:
                why = f"{name!r} is the name of an earlier one" if name else "it has no name"
                log.warning("%s, line %d: left out column %d: %s", self.path, header.line, place + 1, why)
        return pl.DataFrame(list(columns.values()))

    def lines(self, rows: Sequence[int]) -> list[int]:
        """The line numbers of some rows of the table, in the same order; the rows are numbered from 0."""
        wanted = set(rows)
        records = islice(self._good_records(BadRows(self.path, TextOptions(bad_rows="drop"))), 1, None)
        found = {row: record.line for row, record in enumerate(records) if row in wanted}
        return [found[row] for row in rows]
