"""Text of the catalogue: clean the published fields, and fill a template with the fields of an item."""

import ast
import html
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from llmrec.errors import UserError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|\\U0000[dD][89a-fA-F]")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,500}>|<!--.*?-->")
_NON_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# The punctuation that closes a field, such as ". " in "{title}. {brand}"; opening brackets and quotes belong to the
# next field.
_CLOSING = re.compile(r"[^\w({\[\"'“‘]*")


def parse_literal(text: str) -> Any:
    """The value of the Python literal in `text`; raises ValueError for any other text, and never runs code."""
    if _SURROGATE.search(text):
        raise ValueError("not a Python literal: half a surrogate pair, which is no text")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # texts such as "[5in x 3in]" cause one
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal: {error}") from None


def leaves(value: Any) -> Iterator[Any]:
    """Yield the single values in nested lists and dicts, in order, without None."""
    stack = [value]
    while stack:
        top = stack.pop()
        if isinstance(top, list | tuple):
            stack += reversed(top)
        elif isinstance(top, dict):
            stack += reversed(top.values())
        elif top is not None:
            yield top


def clean_text(value: Any, separator: str = ", ") -> str:
    """A published value as one line of plain text.

    The values of a list (also one written as `"['a', 'b']"`) are joined with `separator`, without repeats. HTML tags
    are removed, entities decoded, and white space is collapsed. None and NaN become "".
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with suppress(ValueError):  # a text that only looks like a list stays a text
            value = parse_literal(value)
    texts = (plain_text(str(leaf)) for leaf in leaves(value) if leaf == leaf)
    return separator.join(dict.fromkeys(text for text in texts if text))


def plain_text(text: str) -> str:
    """The text without HTML tags, with entities decoded and white space collapsed; a plain text stays as it is."""
    while True:  # some shops escape a text twice
        plain = " ".join(_TAG.sub(" ", _NON_TEXT.sub(" ", html.unescape(text))).split())
        if plain == text:
            return plain
        text = plain


def clean_record(record: dict[str, Any]) -> dict[str, str]:
    """An item's published fields as clean text; paragraphs are joined with a space, other lists with ", "."""
    return {
        name: clean_text(value, " " if name in ("description", "features") else ", ") for name, value in record.items()
    }


class Slot(NamedTuple):
    """A field of a template and the literal text around it, which is left out if the field is empty."""

    lead: str
    """the text before the field"""
    field: str
    close: str
    """the closing punctuation after the field"""


def parse_template(template: str, fields: list[str]) -> list[Slot]:
    """Split a template such as `"{title}. by {brand}"` into slots.

    `{{` and `}}` stand for braces. The name of a field may hold any character: braces, a colon, an exclamation mark.

    Raises:
        UserError: for a malformed template, an unknown field, or a template without fields.
    """
    known = "|".join(re.escape(field) for field in sorted(fields, key=len, reverse=True))
    slots: list[Slot] = []
    literal, place = "", 0
    for mark in re.finditer(rf"\{{(?P<field>{known})\}}|\{{\{{|\}}\}}|[{{}}]", template):
        literal += template[place : mark.start()]
        place = mark.end()
        if (field := mark["field"]) is None:
            if mark[0] in "{}":
                raise UserError(_what_is_wrong(template, mark.start(), fields))
            literal += mark[0][0]  # an escaped brace
            continue
        if slots:
            close = _CLOSING.match(literal)
            assert close is not None  # the pattern matches the empty text too
            slots[-1] = slots[-1]._replace(close=close.group())
            literal = literal[close.end() :]
        slots.append(Slot(literal, field, ""))
        literal = ""
    literal += template[place:]
    if not slots:
        raise UserError(f"--embed.template {template!r} names no field; expected {_known(fields)}.")
    slots[-1] = slots[-1]._replace(close=literal)
    return slots


def _what_is_wrong(template: str, place: int, fields: list[str]) -> str:
    """Why the brace at `place` begins no field."""
    name, closed, _ = template[place + 1 :].partition("}")
    if template[place] == "{" and closed:
        return f"--embed.template {template!r}: no field {name!r} in the catalogue; expected {_known(fields)}."
    return f"--embed.template {template!r} is malformed: a single {template[place]!r}; write fields as {{title}}."


def _known(fields: list[str]) -> str:
    """What a template may name."""
    return f"some of {' '.join(f'{{{field}}}' for field in fields)}, or '' for all of them"


def fill_template(slots: list[Slot], values: dict[str, str]) -> str:
    """The text for one item; an empty field is left out together with its lead and its closing punctuation."""
    present = [(slot, value) for slot in slots if (value := values[slot.field].strip())]
    parts: list[str] = []
    for slot, value in present:
        close = slot.close
        if slot is present[-1][0] and slot is not slots[-1]:
            close = close.rstrip(" ,;:|/-–—")  # no field follows, so no separator is needed
        if close.startswith(".") and value.endswith((".", "!", "?", "…")):
            close = close[1:]
        parts += [slot.lead, value, close]
    return " ".join("".join(parts).split())
