"""Tables in GitHub's Markdown."""

import re
from collections.abc import Sequence
from typing import NamedTuple

NONE = "–"
NUMBER = re.compile(rf"(\*\*)?[-+]?[\d.,]+( to [\d.,]+)?( ?[%h])?(\*\*)?|{NONE}|")


class Table(NamedTuple):
    """Column headings, and rows of as many cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table with padded columns, so that it reads well as plain text too; columns of numbers are
    right-aligned.

    Args:
        head: the column headings, and rows: cells, as many a row. Both are Markdown already (may hold links); pass
            foreign text through ``md``.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    columns = list(zip(widths, numeric_columns(head, rows), strict=True))
    lines = [
        [cell.rjust(width) if right else cell.ljust(width) for cell, (width, right) in zip(line, columns, strict=True)]
        for line in lines
    ]
    lines.insert(1, ["-" * (width - right) + ":" * right for width, right in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def numeric_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return for each column whether all its cells are numbers, intervals or empty."""
    return [all(NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(head))]


def md(text: object) -> str:
    """Return the text as one line in which no character is read as Markdown or HTML."""
    return re.sub(r"[\\`*\[\]<>|#~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(str(text).split()))


def fence(text: str, language: str = "") -> str:
    """Return the text as a Markdown code block, its fence longer than any run of backticks inside."""
    ticks = "`" * max(3, 1 + _longest_run(text))
    return f"{ticks}{language}\n{text}\n{ticks}"


def code(text: str) -> str:
    """Return the text as one line of Markdown code, its backticks as many as it needs."""
    ticks, text = "`" * (1 + _longest_run(text)), " ".join(text.split())
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
