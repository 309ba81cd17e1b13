"""Tables in every dialect: what a writer writes is read back equal, and a mistake is named with its line."""

import codecs
import csv
import gzip
import io
import logging
import re
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.data.bad_rows import TextOptions
from llmrec.data.files import read_table
from llmrec.data.separated import NONE, RELAXED, Parser, SeparatedFile
from llmrec.errors import UserError

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = ["item_id", "title", "Meta: _brand"]
VALUES = st.text(st.sampled_from("aÉé\\\"'”,;|\t{}: \n0"), max_size=8)
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=6)


def read(
    data: bytes | str, name: str = "items.csv", used: list[str] | None = None, **options: str
) -> list[tuple[str, ...]]:
    """The header and the rows of a file with this content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        frame = read_table(path, options=TextOptions(**options, settable=True), used=used)
    return [
        tuple(frame.columns),
        *(tuple(value or "" for value in row) for row in frame.rows()),
    ]


def filled(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows that hold something."""
    return [row for row in rows if "".join(row).strip()]


@relaxed
@given(
    rows=ROWS,
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    blank=st.sets(st.integers(0, 7)),
    packed=st.booleans(),
)
def test_standard_dialects_are_read_back(rows, separator, end, quoting, encoding, blank, packed):
    if encoding == "cp1252":  # "É”" in it is valid UTF-8 too
        rows = [tuple(value.replace("’", "é").replace("”", "é") for value in row) for row in rows]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)
    for number, row in enumerate([tuple(NAMES), *rows]):
        file.write(end * (number in blank))
        writer.writerow(row)
    data = file.getvalue().encode(encoding)
    name = "items.csv.gz" if packed else "items.csv"
    assert read(gzip.compress(data) if packed else data, name) == [tuple(NAMES), *filled(rows)]


UNQUOTED = st.text(st.sampled_from("aÉé\\\"'” {}:0"), max_size=8)


@relaxed
@given(
    rows=st.lists(st.tuples(UNQUOTED, UNQUOTED, UNQUOTED), min_size=1, max_size=6), separator=st.sampled_from(",;\t|")
)
def test_tables_without_quoting_are_read_back(rows, separator):
    text = "".join(separator.join(row) + "\n" for row in [tuple(NAMES), *rows])
    assert read(text, quoting="none") == [tuple(NAMES), *filled(rows)]


@relaxed
@given(rows=ROWS)
def test_backslash_escapes_are_read_back(rows):
    """Each value is in quotation marks, with a backslash before each mark and each backslash."""
    rows = [('5" nail', "\\", "x"), *rows]  # without it, the file may be a standard one
    escaped = [[value.replace("\\", "\\\\").replace('"', '\\"') for value in row] for row in [NAMES, *rows]]
    text = "".join(",".join(f'"{value}"' for value in row) + "\n" for row in escaped)
    assert read(text) == [tuple(NAMES), *filled(rows)]


@relaxed
@given(text=st.text(st.sampled_from('ab,"\n\r\\ '), max_size=40), block=st.integers(3, 9))
def test_both_ways_read_a_standard_file_equally(text, block):
    """polars reads the file only if this module would read the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(("x,y\n" + text).encode())
        file = SeparatedFile(path, ",", TextOptions())
        fast = file._standard_frame()
        if fast is not None:
            assert fast.equals(file._parsed_frame())
            lines = file.lines(range(len(fast)))
            assert lines == sorted(lines)


def test_quotation_marks_are_checked_across_blocks(monkeypatch):
    for size in range(1, 12):
        monkeypatch.setattr("llmrec.data.separated._CHUNK", size)
        for text in ('a,b\n"x ""y""",2\n', 'a,b\n1,"x"\r\n"",3', 'a,b\n1,"x"y"z"\n', 'a,b\n1,5" nail\n'):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "table.csv"
                path.write_text(text, newline="")
                standard = SeparatedFile(path, ",", TextOptions())._is_standard(True)
            assert standard is ("nail" not in text and "y" + '"z' not in text), (size, text)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('1,5" nail\n2,"Oak, 6"" x"\n', [("1", '5" nail'), ("2", 'Oak, 6" x')]),
        ('1,"Amber" lamp\n2,"Tin cup\n3,Rope\n', [("1", '"Amber" lamp'), ("2", '"Tin cup'), ("3", "Rope")]),
        ('1,"5\\" nail"\n2,"a\\\\"\n', [("1", '5" nail'), ("2", "a\\")]),
        ("1,a\\,b\n2,c\\nd\n", [("1", "a,b"), ("2", "c\\nd")]),
        ('1,5" x 6" board\n2,"x"y"z"\n', [("1", '5" x 6" board'), ("2", '"x"y"z"')]),
        ("1,x\n\n  \n,\n2,y\n\n\n", [("1", "x"), ("2", "y")]),
        ('1,"two\n\nlines"\n2,y', [("1", "two\n\nlines"), ("2", "y")]),
        ("1,x\n2\n", [("1", "x"), ("2", "")]),
        ("1,x,,\n2,y\n", [("1", "x"), ("2", "y")]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quoting_is_found(text, rows, end):
    text = ("a,b\n" + text).replace("\n", end)
    assert read(text) == [("a", "b"), *((one, two.replace("\n", end)) for one, two in rows)]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ("a;b\n1;2,5\n", [("a", "b"), ("1", "2,5")]),
        ("a;b;Colour, size\n1;Oak, big;x\n", [("a", "b", "Colour, size"), ("1", "Oak, big", "x")]),
        ("a,x|y|z\n1,2\n", [("a", "x|y|z"), ("1", "2")]),
        ("sep=;\r\na;b,c\r\n1;2\r\n", [("a", "b,c"), ("1", "2")]),
        ('a, b\n1, "x, y"\n2, z\n', [("a", "b"), ("1", "x, y"), ("2", "z")]),
        ("a , b\n1, x\n", [("a", "b"), ("1", "x")]),
        ("a,b\r1,x\r2,y\r", [("a", "b"), ("1", "x"), ("2", "y")]),
        (",a,b\n0,1,x\n", [("a", "b"), ("1", "x")]),
        ("a,b,\n1,x,\n", [("a", "b"), ("1", "x")]),
        ('"a ""b""","c\nd"\n1,2\n', [('a "b"', "c\nd"), ("1", "2")]),
        ("a,b\n1,Größe\n".encode("latin-1"), [("a", "b"), ("1", "Größe")]),
        ("a,b\n1,“€”\n".encode("cp1252"), [("a", "b"), ("1", "“€”")]),
        (codecs.BOM_UTF16_BE + "a,b\n1,Größe\n".encode("utf-16-be"), [("a", "b"), ("1", "Größe")]),
        ("a,b\n1,Größe\n".encode("utf-32"), [("a", "b"), ("1", "Größe")]),
    ],
)
def test_separators_line_ends_and_encodings_are_found(data, rows):
    assert read(data) == rows


@pytest.mark.parametrize("encoding", ["cp1251", "gbk", "utf-16-le", "utf-8"])
def test_a_named_encoding(encoding):
    assert read("a,b\n1,Я\n".encode(encoding), encoding=encoding) == [("a", "b"), ("1", "Я")]


def test_capital_suffixes():
    assert read("a\tb\n1\t2\n", "ITEMS.TSV") == [("a", "b"), ("1", "2")]
    assert read(gzip.compress(b"a,b\n1,2\n"), "ITEMS.CSV.GZ") == [("a", "b"), ("1", "2")]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            'a,b\n1,x\n2,5" nail\n',
            {"quoting": "standard"},
            r"items\.csv, line 3: a quotation mark stands inside a field, at '2,5\" nail'; write a mark inside "
            r"quotation marks twice, set --data\.quoting auto or none, or use --data\.bad_rows drop",
        ),
        ('a,b\n1,"x, y"\n2,"5" nail"\n', {}, r"line 3: text follows the quotation mark that closes a field, at .*none"),
        ('a,b\n1,"x, y"\n2,"z\n', {}, r"line 3: the quotation mark that opens a field is never closed, at '2,\"z'"),
        ("a,b\n\n1,x,y\n", {}, r"line 3: 3 fields with ',' between them, expected 2 as in the header; put values"),
        ('"1","x, y"\n"2","5" nail"\n"3","z"\n', {}, r"line 2: text follows"),
        (b"a,b\n1,\xc3\xa9\n2,\xe9\n", {}, r"line 3: the byte 0xe9 is no text in utf-8; name .*--data\.encoding"),
        (b"a,b\n1,x\n2,\x81\n", {}, r"line 3: the byte 0x81 is no text in cp1252"),
        ("a,b\n1,Я\n", {"encoding": "ascii"}, r"line 2: the byte 0xd0 is no text in ascii"),
        ("", {}, r"no line of column names as the file is empty"),
        ("\n", {}, r"no line of column names as the file is empty"),
    ],
)
def test_mistakes_have_their_line_and_the_fix(data, options, message):
    with pytest.raises(UserError) as error:
        read(data, **options)
    assert re.search(message, error.value.with_flags), error.value.with_flags


def test_bad_rows_are_left_out_counted_and_shown(caplog):
    rows = ["1,x", "2,y,z", '3,"w" w', "4,v", '5,"never', "6,a,b", "7,u"]
    text = "a,b\n" + '0,"p, q"\n' + "".join(row + "\n" for row in rows)
    with caplog.at_level(logging.WARNING):
        assert read(text, bad_rows="drop") == [("a", "b"), ("0", "p, q"), ("1", "x"), ("4", "v"), ("7", "u")]
    assert "items.csv: 4 bad rows left out" in caplog.text
    assert all(f"line {line}: " in caplog.text for line in (4, 5, 7))
    assert "line 8" not in caplog.text, "three are shown"


def test_columns_that_are_left_out_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert read("a,b,a,\n1,2,3,4\n", used=["b"]) == [("a", "b"), ("1", "2")]
    assert "left out column 3: 'a' is the name of an earlier one" in caplog.text
    assert "left out column 4: it has no name" in caplog.text


@pytest.mark.parametrize("used", [None, ["a"]])
def test_a_column_that_is_used_stands_once(used):
    with pytest.raises(UserError, match=r"items\.csv, line 1: column 'a' stands twice; rename or remove one of them"):
        read("a,b,a\n1,2,3\n", used=used)


def test_a_large_file_with_line_ends_in_its_fields(tmp_path):
    """polars reads a large file in parts at the same time."""
    rows = [(f"i{n}", f'line {n}\n"quoted", more\n' * (n % 3)) for n in range(60_000)]
    frame = pl.DataFrame(rows, schema=["item_id", "title"], orient="row")
    frame.write_csv(tmp_path / "items.csv")
    file = SeparatedFile(tmp_path / "items.csv", ",", TextOptions())
    fast = file._standard_frame()
    assert fast is not None
    assert fast.with_columns(pl.col("title").fill_null("")).equals(frame)


def test_lines_of_rows(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n\n1,"x\ny"\n\n2,z\n3,w\n')
    assert SeparatedFile(tmp_path / "t.csv", ",", TextOptions()).lines([2, 0, 1]) == [7, 3, 6]


def test_parsers_of_one_record():
    assert [record.fields for record in Parser(RELAXED, ",").records('a,"b ""c""",\n')] == [["a", 'b "c"', None]]
    assert [record.fields for record in Parser(NONE, ",").records('a,"b\n')] == [["a", '"b']]
