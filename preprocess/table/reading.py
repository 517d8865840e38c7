"""Reading a table of recordings."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.manifest import inside
from preprocess.preprocessor import Utterance
from preprocess.table.columns import TableData


class Line(NamedTuple):
    """A recording. ``split`` and ``speaker`` are None where the table has no such column."""

    utterance: Utterance
    split: str | None
    speaker: str | None


def read_table(path: Path, columns: TableData, spelled: Callable[[str], str]) -> list[Line]:
    """Read every line; ``spelled`` turns a text into the characters that are its labels.

    Raises ``UserError``, naming the line, for a missing column, an empty field, another split than
    ours, a path that leaves the corpus, or a recording that is listed twice.
    """
    wanted = [columns.path, *([columns.text] if columns.text else columns.labels)]
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            table = csv.DictReader(handle, delimiter=delimiter)
            found = [name for name in table.fieldnames or () if name]
            missing = [name for name in wanted if name not in found]
            if missing:
                raise UserError(
                    f"{path}: no column {missing[0]!r} in its first line, which has "
                    f"{', '.join(found) or 'nothing'}; name yours in datarc"
                )
            rows = [(table.line_num, row) for row in table]
    except FileNotFoundError:
        raise UserError(
            f"{path}: table not found; it lies under datarc.root_path, datarc.table names it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
    wanted += [name for name in (columns.split, columns.speaker) if name in found]
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        row = {name: (row.get(name) or "").strip() for name in wanted}
        for name, value in row.items():
            if not value:
                raise UserError(f"{where}: nothing in the column {name!r}")
        name = row[columns.path]
        inside(name, path.parent, where)
        if seen.setdefault(name, number) != number:
            raise UserError(f"{where}: {name} stands in line {seen[name]} already")
        labels = (
            spelled(row[columns.text])
            if columns.text
            else tuple(row[column] for column in columns.labels)
        )
        if not labels:
            raise UserError(f"{where}: no letter in the text {row[columns.text][:60]!r}")
        split = row.get(columns.split)
        if split is not None and split not in SPLITS:
            raise UserError(f"{where}: split {split!r}; expected {', '.join(SPLITS)}")
        lines.append(Line(Utterance(name, labels), split, row.get(columns.speaker)))
    return lines
