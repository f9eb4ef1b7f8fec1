"""Paragraphs, tables and pictures, written as Markdown or as one HTML file that needs no other.

A page is a title and sections; a section is its heading and its blocks. A block is a str (a paragraph), a Table, a
Picture or Code. All text is escaped.
"""

import base64
import html
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"
DPI = 160  # of the pictures: HTML shows them at their size in inches
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 0 auto; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.wide { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; } th { text-align: left; border-bottom: 2px solid #888; }
th, td { padding: 0.2rem 1.2rem 0.2rem 0; vertical-align: top; } tr + tr td { border-top: 1px solid #ddd; }
td:last-child { overflow-wrap: anywhere; } td:first-child, .number { white-space: nowrap; }
.number { text-align: right; } img { height: auto; max-width: 100%; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f3f3; padding: 0.7rem; }
@media print { body { font-size: 10pt; padding: 0; } img, tr, pre { break-inside: avoid; } h2 { break-after: avoid; } }
""".strip()


@dataclass(frozen=True)
class Table:
    """Rows as long as the head; folded away behind the line ``summary`` if there is one."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: str = ""

    def numeric(self) -> list[bool]:
        """For each column, whether it holds figures alone."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.head))]
        return [all(re.fullmatch(rf"[\d.,]+%?|{NONE}", cell) for cell in column) for column in columns]


@dataclass(frozen=True)
class Picture:
    """A PNG, and the name of its file beside the Markdown."""

    name: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Code:
    text: str


Block = str | Table | Picture | Code
Section = tuple[str, Sequence[Block]]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The page in GitHub's Markdown; pictures are links to their files."""
    parts = [f"# {_md(title)}"]
    for heading, blocks in sections:
        parts += [f"## {_md(heading)}", *map(_markdown_block, blocks)]
    return "\n\n".join(parts) + "\n"


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The page in HTML with its style and pictures inside."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for heading, blocks in sections:
        parts += [f"<h2>{html.escape(heading)}</h2>", *map(_html_block, blocks)]
    return "\n".join([
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>\n{STYLE}\n</style></head>",
        "<body>",
        *parts,
        "</body>\n</html>\n",
    ])  # fmt: skip


def markdown_table(table: Table) -> str:
    """With padded columns, so that it is also read as plain text."""
    rows = [[_md(cell) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(widths, table.numeric(), strict=True))
    lines = [
        [cell.rjust(width) if number else cell.ljust(width) for cell, (width, number) in zip(row, columns, strict=True)]
        for row in rows
    ]
    lines.insert(1, ["-" * (width - number) + ":" * number for width, number in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_block(block: Block) -> str:
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
        return f"{fence}\n{block.text}\n{fence}"
    if isinstance(block, Picture):
        return f"![{_md(block.alt)}]({block.name})"
    if isinstance(block, Table):
        text = markdown_table(block)
        folded = f"<details><summary>{html.escape(block.summary)}</summary>\n\n{text}\n\n</details>"
        return folded if block.summary else text
    return _md(block)


def _html_block(block: Block) -> str:
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Picture):
        (pixels,) = struct.unpack(">I", block.png[16:20])  # the width in a PNG's header
        width = 96 * pixels // DPI
        size = f'width="{width}" style="min-width: {2 * width // 3}px"'  # smaller than that nobody could read it
        source = f"data:image/png;base64,{base64.b64encode(block.png).decode()}"
        return f'<div class="wide"><img {size} alt="{html.escape(block.alt)}" src="{source}"></div>'
    if isinstance(block, Table):
        text = _html_table(block)
        folded = f"<details><summary>{html.escape(block.summary)}</summary>\n{text}\n</details>"
        return folded if block.summary else text
    return f"<p>{html.escape(block)}</p>"


def _html_table(table: Table) -> str:
    numeric = table.numeric()
    rows = ["".join(_cell("th", *cell) for cell in zip(table.head, numeric, strict=True))]
    rows += ["".join(_cell("td", *cell) for cell in zip(row, numeric, strict=True)) for row in table.rows]
    return "\n".join(['<div class="wide"><table>', *(f"<tr>{row}</tr>" for row in rows), "</table></div>"])


def _cell(tag: str, text: str, number: bool) -> str:
    style = ' class="number"' if number else ""
    return f"<{tag}{style}>{html.escape(text)}</{tag}>"


def _md(text: str) -> str:
    """One line in which nothing is taken for Markdown or HTML."""
    return re.sub(r"[\\`*\[\]<>|#~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))
