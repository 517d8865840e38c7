"""Prompt text: one ``units <s> labels`` a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

SEPARATOR = " <s> "


def read_prompt_text(path: Path, made_by: str) -> Iterator[tuple[str, str]]:
    """Stream (units, labels) of each line, both as written.

    Raises ``UserError`` for a missing file (``made_by`` is the command that makes it) or a line
    without one ``<s>``.
    """
    try:
        handle = open(path, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run {made_by} first") from None
    with handle:
        for number, line in enumerate(handle, start=1):
            parts = line.rstrip("\n").split(SEPARATOR)
            if len(parts) != 2:
                raise UserError(
                    f"{path}, line {number}: expected 'units <s> labels', found {line[:60]!r}; "
                    f"run {made_by} again"
                )
            yield parts[0], parts[1]
