#!/usr/bin/env python3
"""Write the tables of README.md and docs/ from results/, results/published.csv and the recipes in sh/.

python -m results.build_tables           writes what stands between <!-- table:NAME --> and <!-- /table -->
python -m results.build_tables --check   changes nothing; exits 1 if a table is out of date
"""

import argparse
import os
import re
from pathlib import Path

from results.records import ROOT, Records
from results.tables import TABLES
from utils.errors import UserError, run_program


def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def build(text: str, page: Path, records: Records) -> str:
    """Return the text of a page with all its tables written anew.

    Raises:
        UserError: a marker names no table, or has no end.
    """
    names = re.findall(r"<!-- table:(\w+) -->", text)
    unknown = [name for name in names if name not in TABLES]
    if unknown or len(names) != text.count("<!-- /table -->"):
        raise UserError(f"{page.name}: unknown tables {unknown} or markers without an end; known: {', '.join(TABLES)}")

    def link(target: Path, words: str) -> str:
        return f"[{words}]({Path(os.path.relpath(target, page.parent)).as_posix()})"

    def written(found: re.Match[str]) -> str:
        return f"<!-- table:{found[1]} -->\n{TABLES[found[1]](records, link)}\n<!-- /table -->"

    return re.sub(r"<!-- table:(\w+) -->\n.*?<!-- /table -->", written, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is out of date")
    check, records = parser.parse_args().check, Records()
    stale = {page: text for page in pages() if (text := build(page.read_text(), page, records)) != page.read_text()}
    if check and stale:
        names = ", ".join(page.name for page in stale)
        raise UserError(f"{names}: tables are out of date: run python -m results.build_tables")
    for page, text in stale.items():
        page.write_text(text)
        print(f"updated {page.relative_to(ROOT)}")


if __name__ == "__main__":
    run_program(main)
