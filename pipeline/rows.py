"""The row format of preprocessed data: one utterance per line, ``file|units|labels``.

``units`` and ``labels`` are non-negative integers separated by single spaces. ``file`` is any UTF-8
text on one line. It may contain ``|``: the last two bars are the separators.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import text_lines, writing

SPLITS = ("train", "valid", "test")
_UNITS = r"[0-9]+(?: [0-9]+)*"
_LABELS = r"[0-9]{1,9}(?: [0-9]{1,9})*"  # at most 9 digits: labels are sorted as numbers
_ROW = re.compile(rf"(.*)\|({_UNITS})\|({_LABELS})")
are_units = re.compile(_UNITS).fullmatch
are_labels = re.compile(_LABELS).fullmatch


class Row(NamedTuple):
    """One utterance. ``units`` and ``labels`` are the text of the row, not numbers."""

    file: str  # the row's name: a path, or for example 1.wav:0.500-1.250
    units: str
    labels: str


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of ``path``.

    Raises ``UserError`` if the split is missing or empty, or (with the line number) for a bad line.
    """
    missing = "this split is missing; make it with preprocess/runner.py --action postprocess"
    number = 0
    for number, line in enumerate(text_lines(path, missing), start=1):
        if not (row := _ROW.fullmatch(line)):
            raise UserError(
                f"{path}, line {number}: expected file|units|labels, the last two as integers "
                f"separated by single spaces, found {line[-60:]!r}"
            )
        yield Row(*row.groups())
    if number == 0:
        raise UserError(f"{path}: empty; a split needs at least one utterance")


def check_name(name: str) -> str:
    """Return ``name``. Raises ``UserError`` if no row can contain it: a row is one line of UTF-8,
    and a byte order mark at the start of the first row would belong to the file.
    """
    if "\n" in name or "\r" in name:
        raise UserError(f"{name}: a row cannot contain a name with a line break; rename it")
    if not name.isprintable():  # most names are printable and need no further check
        if name.startswith("\ufeff"):
            raise UserError(f"{name}: a name cannot begin with a byte order mark; rename it")
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise UserError(f"{name}: a name that is not UTF-8 text; rename it")
    return name


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write ``rows`` and return the number of rows. Raises ``UserError`` as ``check_name`` does."""
    count = 0
    with writing(path) as handle:
        for row in rows:
            check_name(row.file)
            handle.write("|".join(row) + "\n")
            count += 1
    return count
