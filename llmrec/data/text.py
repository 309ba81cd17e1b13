"""Text of the catalogue: cleaning what shops publish, and filling a template with an item's fields."""

import ast
import html
import re
from string import Formatter
from typing import Any, NamedTuple

from llmrec.errors import UserError

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,500}>|<!--.*?-->")
_NON_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# What closes the field before it ("{title}. {brand}"); an opening bracket or quote belongs to the field after it.
_CLOSING = re.compile(r"[^\w(\[\"'“‘]*")


def parse_literal(text: str) -> Any:
    """The Python literal written in `text`; raises ValueError for anything else, and runs none of it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None


def clean_text(value: Any) -> str:
    """One line of plain text from a published value: lists (also written as `"['a', 'b']"`) joined with ", ",
    HTML tags and entities gone, white space collapsed; None and NaN are ""."""
    if value is None or value != value:
        return ""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = parse_literal(value)
        except ValueError:
            pass  # a text that only looks like a list
    if isinstance(value, list | tuple):
        return ", ".join(text for text in map(clean_text, value) if text)
    text = html.unescape(html.unescape(str(value)))  # Amazon escapes some texts twice
    return " ".join(_TAG.sub(" ", _NON_TEXT.sub(" ", text)).split())


class Slot(NamedTuple):
    """A field of a template with the text that stands and falls with it."""

    lead: str
    field: str
    close: str


def parse_template(template: str, fields: list[str]) -> list[Slot]:
    """Split `"{title}. by {brand}"` into slots; raises UserError for a malformed template or an unknown field."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"text template {template!r} is malformed: {error}; write fields as {{title}}"
        ) from None
    slots: list[Slot] = []
    for literal, field, spec, conversion in pieces:
        lead = literal
        if slots:
            close = _CLOSING.match(literal)
            assert close is not None  # the pattern matches the empty text too
            slots[-1] = slots[-1]._replace(close=close.group() if field is not None else literal)
            lead = literal[close.end() :]
        if field is None:
            continue
        if field not in fields or spec or conversion:
            raise UserError(
                f"text template {template!r}: no field {field!r} in the catalogue; known: {', '.join(fields)}"
            )
        slots.append(Slot(lead, field, ""))
    if not slots:
        raise UserError(f"text template {template!r} names no field; known: {', '.join(fields)}")
    return slots


def fill_template(slots: list[Slot], values: dict[str, str]) -> str:
    """The template's text for one item; an empty field goes together with its lead and its closing punctuation."""
    present = [(slot, value) for slot in slots if (value := values[slot.field].strip())]
    parts: list[str] = []
    for slot, value in present:
        close = slot.close
        if slot is present[-1][0] and slot is not slots[-1]:
            close = close.rstrip(" ,;:|/-–—")  # nothing follows that these would separate
        if close.startswith(".") and value.endswith((".", "!", "?", "…")):
            close = close[1:]
        parts += [slot.lead, value, close]
    return " ".join("".join(parts).split())
