"""The row format between the two packages: one utterance a line, ``file|units|labels``.

``units`` and ``labels`` are non-negative integers separated by single spaces. The file name may
itself hold ``|``: the last two bars are the separators.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import writing

SPLITS = ("train", "valid", "test")
_INTEGERS = re.compile(r"[0-9]+(?: [0-9]+)*")


class Row(NamedTuple):
    """One utterance. ``units`` and ``labels`` keep their written form: integers separated by single
    spaces.
    """

    file: str
    units: str
    labels: str


def read_rows(path: Path) -> Iterator[Row]:
    """Stream the rows of ``path``.

    Raises ``UserError``, naming file and line, for a missing split, a line without three columns,
    an empty column, or anything but integers in the second and third.
    """
    try:
        handle = open(path, encoding="utf-8", newline="\n")
    except FileNotFoundError:
        raise UserError(
            f"{path}: this split is missing; make it with preprocess/runner.py --action postprocess"
        ) from None
    with handle:
        number = 0
        try:
            for number, line in enumerate(handle, start=1):
                yield _parse(line.rstrip("\r\n"), path, number)
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number + 1}: not UTF-8 text") from None
    if number == 0:
        raise UserError(f"{path}: empty; a split needs at least one utterance")


def _parse(line: str, path: Path, number: int) -> Row:
    columns = line.rsplit("|", 2)
    if len(columns) != 3:
        raise UserError(f"{path}, line {number}: expected file|units|labels, found {line[:60]!r}")
    for name, text in zip(("units", "labels"), columns[1:]):
        if not text:
            raise UserError(
                f"{path}, line {number}: no {name} ({columns[0]}); "
                "remove the row or quantise it again"
            )
        if not _INTEGERS.fullmatch(text):
            raise UserError(
                f"{path}, line {number}: {name} must be integers separated by single spaces, "
                f"found {text[:60]!r}"
            )
    return Row(*columns)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write ``rows`` to ``path`` atomically and return how many there were."""
    count = 0
    with writing(path) as handle:
        for row in rows:
            handle.write("|".join(row) + "\n")
            count += 1
    return count
