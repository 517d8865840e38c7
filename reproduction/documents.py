"""The tables in README.md and docs/results.md, between two marks that Markdown does not show."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import writing
from pipeline.workspace import REPOSITORY

FIGURES = REPOSITORY / "docs" / "results.csv"
DOCUMENTS = (REPOSITORY / "README.md", REPOSITORY / "docs" / "results.md")
BEGIN = "<!-- tables: python reproduce.py --write_docs -->\n"
END = "<!-- end of tables -->\n"


def put_table(path: Path, table: str) -> None:
    """Replace what stands between the marks. Raises ``UserError`` where they are missing."""
    before, _, after = split_at_marks(path)
    with writing(path) as handle:
        handle.write(before + BEGIN + table + END + after)


def split_at_marks(path: Path) -> tuple[str, str, str]:
    """The text before the marks, between them, and after them."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    between, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path}: expected the marks {BEGIN.strip()} and {END.strip()}")
    return before, between, after
