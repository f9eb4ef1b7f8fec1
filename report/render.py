"""Fill the templates of this room."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from report.tables import Table, code, fence, markdown_table, md, numeric_columns

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> bytes:
    """Fill a template: every value is escaped for HTML (``*.html.j2``) or Markdown (``*.md.j2``).

    Returns:
        UTF-8; what has no UTF-8, as in the name of a file, becomes ``\\udcff`` or similar.
    """
    html = template.endswith(".html.j2")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        finalize=None if html else lambda value: value if isinstance(value, Markup) else md(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fence": _raw(fence), "code": _raw(code), "table": _table}
    environment.globals["numeric_columns"] = numeric_columns
    return environment.get_template(template).render(values).encode("utf-8", "backslashreplace")


def _table(table: Table) -> Markup:
    """Return the table in Markdown, its cells escaped."""
    return Markup(markdown_table([md(cell) for cell in table.head], [[md(cell) for cell in row] for row in table.rows]))


def _raw(function: Any) -> Any:
    """Mark the text that a filter returns as final."""
    return lambda text, *arguments: Markup(function(str(text), *arguments))
