"""Prompt text: one ``units <s> labels`` a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import text_lines
from pipeline.rows import are_labels

SEPARATOR = " <s> "


def read_prompt_text(path: Path, made_by: str) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of each line, both as written.

    Raises ``UserError`` for a missing file (``made_by`` is the command that makes it) or a line
    without one ``<s>``.
    """
    lines = text_lines(path, f"not found; run {made_by} first")
    for number, line in enumerate(lines, start=1):
        units, separator, labels = line.partition(SEPARATOR)
        if not (units and separator and are_labels(labels)):
            raise UserError(
                f"{path}, line {number}: expected 'units <s> labels', found {line[:60]!r}; "
                f"run {made_by} again"
            )
        yield units, labels
