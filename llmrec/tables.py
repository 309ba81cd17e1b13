"""Tables of text cells, for a terminal and for Markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]
"""A header and the rows below it, all of one length; the first column holds names, the others numbers."""


def plain(rows: Rows) -> str:
    """Aligned columns: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *numbers)))
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """The same as a Markdown table."""
    header, *others = rows
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *others))
