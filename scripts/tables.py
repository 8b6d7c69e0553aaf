"""Writes the tables of README and docs from the registries: python -m scripts.tables

A table stands between `<!-- table NAME: python -m scripts.tables -->` and `<!-- end of table -->`.
"""

import re
from pathlib import Path

from worldstereo.cli.formats import tables

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/formats.md", "docs/extending.md")
TABLE = re.compile(r"(<!-- table (\w+): .*? -->\n).*?\n?(<!-- end of table -->)", re.S)


def filled(text: str) -> str:
    """A page with its tables as the registries have them now."""
    found = tables()
    return TABLE.sub(lambda m: f"{m[1]}{found[m[2]].markdown()}\n{m[3]}", text)


if __name__ == "__main__":
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
