"""Text files in any encoding, as a whole or line by line.

The encoding is found from the content: a byte order mark names it; a file without one is UTF-8 if most of its lines
beyond ASCII are, and otherwise Windows-1252, whose printable characters include those of Latin-1.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llmrec.console import get_logger
from llmrec.data.bad_rows import BadRows, TextOptions
from llmrec.errors import UserError

log = get_logger(__name__)

LEGACY = "cp1252"
"""Encoding of a text that has no byte order mark and is not UTF-8."""
NAME_ENCODING = "name the right encoding with --data.encoding"
_CHUNK = 2**24
_UNDECODED = re.compile("[\udc80-\udcff]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def is_packed(path: Path) -> bool:
    """Whether the file is compressed: its name ends in .gz."""
    return path.suffix.lower() == ".gz"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed, as bytes; raises UserError where it cannot be read."""
    try:
        with gzip.open(path) if is_packed(path) else open(path, "rb") as file:
            yield file  # type: ignore[misc]  # GzipFile reads as a binary file does
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def find_encoding(path: Path, options: TextOptions) -> str:
    """The name of the encoding: `options.encoding`, or, if that is auto, what the content shows.

    Raises:
        UserError: for a file that cannot be read.
    """
    with open_bytes(path) as file:
        start = file.read(4)
        marked = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), None)
        if options.encoding != "auto":
            named = codecs.lookup(options.encoding).name
            return marked if marked and named.startswith(marked.removesuffix("-sig")) else named
        if marked:
            return marked
        file.seek(0)
        if _is_utf8(file):
            return "utf-8"
        file.seek(0)
        legacy = utf8 = 0
        sample = b""
        for line in file:
            if not line.isascii():
                is_utf8 = _decodes(line)
                utf8 += is_utf8
                legacy += not is_utf8
                sample = sample or (b"" if is_utf8 else line)
    if utf8 >= legacy:
        return "utf-8"  # some lines are damaged
    hint = "; if these letters are wrong, name the encoding with --data.encoding" if options.settable else ""
    example = sample.decode(LEGACY, "replace").strip()[:60]
    log.warning("%s: not UTF-8, read as %s, for example %r%s", path, LEGACY, example, hint)
    return LEGACY


def _is_utf8(file: IO[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = False  # whether a chunk ended within a character
    try:
        while chunk := file.read(_CHUNK):
            if rest or not chunk.isascii():
                decoder.decode(chunk)
                rest = bool(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_text(path: Path, encoding: str) -> str:
    """The whole text of a file; a byte that is no text in this encoding becomes a code point that `undecoded` finds.

    Raises:
        UserError: for a file that cannot be read.
    """
    with open_bytes(path) as file:
        data = file.read()
    try:
        return data.decode(encoding, "surrogateescape")
    except UnicodeError as error:
        raise _not_text(path, 0, encoding, error) from None


def undecoded(text: str, encoding: str) -> str:
    """What is wrong with a text that holds undecoded bytes, such as "the byte 0xe9 is no text in utf-8"; else ""."""
    if text.isascii() or (found := _UNDECODED.search(text)) is None:
        return ""
    return f"the byte 0x{ord(found[0]) - 0xDC00:02x} is no text in {encoding}"


def _not_text(path: Path, number: int, encoding: str, error: UnicodeError) -> UserError:
    reason = getattr(error, "reason", error)
    return UserError(f"{path}: after line {number}: not {encoding} text ({reason})")


def read_lines(path: Path, options: TextOptions | None = None, bad: BadRows | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) for each line that is not blank.

    Line numbers start at 1. Lines come without their line ends.

    Args:
        path: the file; .gz is decompressed.
        options: the encoding and the policy for bad rows.
        bad: the file's bad rows, if the caller adds and reports some too.

    Raises:
        UserError: for a file that cannot be read, or a line that is not text in the file's encoding.
    """
    options = options or TextOptions()
    rows = bad or BadRows(path, options)
    encoding, number = find_encoding(path, options), 0
    try:
        with open_bytes(path) as file:
            for line in io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="\n"):
                number += 1
                if wrong := undecoded(line, encoding):
                    rows.add(f"line {number}", wrong, NAME_ENCODING)
                elif line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeError as error:
        raise _not_text(path, number, encoding, error) from None
    if bad is None:
        rows.report()
