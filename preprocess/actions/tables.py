"""Tables of recordings as people, spreadsheets and corpora write them. A row is one line of the
file, so that no quotation mark can swallow the next row.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from preprocess.actions.corpus import located


class TableRow(NamedTuple):
    """``where`` names file and line, ``path`` starts at the corpus folder; ``values``: the columns
    that were asked for and exist, in Unicode's NFC.
    """

    where: str
    path: str
    values: dict[str, str]


def read_table(
    file: Path,
    root: Path,
    columns: Sequence[str],
    missing: str,
    say: Callable[[str], None],
    optional: Sequence[str | None] = (),
    may_be_empty: Sequence[str | None] = (),
) -> list[TableRow]:
    """Read ``columns``, the first of which holds paths, and those of the others that the first line
    names. ``.tsv`` has tabs, another file commas.

    Quotation marks of a TSV that do not pair up within a line are text (Common Voice writes none
    around a field), which ``say`` tells. Raises ``UserError``, naming the line, for such a mark in
    a CSV, more or fewer fields than the first line, an empty field, a path that leaves ``root``;
    with ``missing`` if there is no such file.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"{file}: {missing}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a table in UTF-8 ({error})") from None
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    names = _header(lines[0], file, delimiter, columns)
    wanted = [name for name in (*columns, *optional, *may_be_empty) if name and name in names]
    try:
        rows = _rows(lines, file, delimiter, csv.QUOTE_MINIMAL)
    except UserError as error:
        if delimiter == ",":
            raise
        rows = _rows(lines, file, delimiter, csv.QUOTE_NONE)
        say(f"{file.name}: quotation marks are read as text ({error})")
    table = []
    for number, row in enumerate(rows[1:], start=2):
        where = f"{file}, line {number}"
        fields = {name: row[names.index(name)].strip() for name in wanted if row}
        for name, value in fields.items():
            if not value and name not in may_be_empty:
                raise UserError(f"{where}: nothing in the column {name!r}")
        if row:  # else an empty line
            path = located(fields[columns[0]], root, where)
            values = {name: unicodedata.normalize("NFC", value) for name, value in fields.items()}
            table.append(TableRow(where, path, values))
    return table


def _header(line: str, file: Path, delimiter: str, needed: Sequence[str]) -> list[str]:
    """The columns' names. Raises ``UserError`` for one that is missing or there twice."""
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    missing = [name for name in needed if name not in names]
    if missing:
        listed = ", ".join(filter(None, names))[:200] or "nothing"
        other = next((mark for mark in "\t;,| " if mark in line and len(names) == 1), "")
        remedy = f"is its separator {other!r}, not {delimiter!r}?" if other else ""
        raise UserError(
            f"{file}: no column {', '.join(map(repr, missing))} in its first line, which has "
            f"{listed}; {remedy or 'name yours in datarc'}"
        )
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise UserError(f"{file}: two columns {twice[0]!r} in its first line; rename one")
    return names


def _rows(lines: Sequence[str], file: Path, delimiter: str, quoting: int) -> list[list[str]]:
    """The fields of every line; none of an empty one."""
    rows: list[list[str]] = []
    table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in table:
            if table.line_num != len(rows) + 1:
                raise csv.Error('a quotation mark closes in another line; write "" for one')
            if "\0" in lines[len(rows)]:
                raise csv.Error("a NUL character; is the table in UTF-16? save it as UTF-8")
            if row and rows and len(row) != len(rows[0]):
                more = '; put "..." around a text that holds the separator'
                raise csv.Error(
                    f"{len(row)} fields, the first line has {len(rows[0])}"
                    + more * (len(row) > len(rows[0]))
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{file}, line {len(rows) + 1}: {error}") from None
    return rows
