"""Tables of recordings as people, spreadsheets and corpora write them. A row is one line of the
file, so that no quotation mark can swallow the next row.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from preprocess.actions.corpus import Listing, first_few, located


class TableRow(NamedTuple):
    """``where`` names file and line, ``path`` starts at the corpus folder; ``values``: the columns
    that were asked for and exist, in Unicode's NFC.
    """

    where: str
    path: str
    values: dict[str, str]


class Form(NamedTuple):
    """How a table is written. ``columns``: names for a file whose first line has none.
    ``separator``: empty, a tab in ``.tsv``, else a comma. ``prefix``: what its paths begin with and
    the corpus lacks. ``audio``: where a row's file may be, ``{path}`` is the table's.
    """

    columns: Sequence[str] = ()
    separator: str | None = None
    prefix: str = ""
    audio: Sequence[str] = ("{path}",)


PLAIN = Form()
Records = Iterator[tuple[str, dict[str, str]]]  # where a row is, and its fields


def read_table(
    file: Path,
    root: Path,
    columns: Sequence[str],
    missing: str,
    say: Callable[[str], None],
    optional: Sequence[str | None] = (),
    may_be_empty: Sequence[str | None] = (),
    form: Form = PLAIN,
) -> list[TableRow]:
    """Read ``columns``, the first of which holds paths, and those of the others that exist.

    Quotation marks of a TSV that do not pair up within a line are text (Common Voice writes none
    around a field), which ``say`` tells. Raises ``UserError``, naming the line, for such a mark in
    a CSV, more or fewer fields than the first line, an empty field, a path that leaves ``root``;
    with ``missing`` if there is no such file.
    """
    try:
        text = file.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file}: {missing}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a table in UTF-8 ({error})") from None
    if file.suffix.lower() in (".json", ".jsonl"):
        records = _json_records(text, file, columns)
    else:
        records = _records(text.split("\n"), file, columns, form, say)
    wanted = dict.fromkeys(filter(None, (*columns, *optional, *may_be_empty)))
    table = []
    for where, record in records:
        fields = {name: record[name].strip() for name in wanted if name in record}
        for name, value in fields.items():
            if not value and name not in may_be_empty:
                raise UserError(f"{where}: nothing in the column {name!r}")
        values = {name: unicodedata.normalize("NFC", value) for name, value in fields.items()}
        known = {**record, "path": fields[columns[0]].removeprefix(form.prefix)}
        try:
            paths = [template.format_map(known) for template in form.audio]
        except (LookupError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: datarc.audio: no column {error} in it") from None
        path = next((path for path in paths[:-1] if (root / path).exists()), paths[-1])
        table.append(TableRow(where, located(path, root, where), values))
    return table


def read_files(listing: Listing, root: Path, pattern: str) -> list[TableRow]:
    """A row for each file below ``root`` that matches ``pattern``, such as
    ``{speaker}/*/{word}_*.wav``: a name in braces is a column, ``**`` any folders. Numbers in
    names are ordered as numbers. Raises ``UserError`` where there is none.
    """
    stem, dot, suffix = pattern.rpartition(".")
    names = re.findall(r"\{(\w+)\}", stem)
    wild = {"**/": "(?:.*/)?", "*": "[^/]*"}
    parts = re.split(r"(\{\w+\}|\*\*/|\*)", stem)
    regex = "".join("([^/]+)" if p[:1] == "{" else wild.get(p, re.escape(p)) for p in parts)
    if not dot or "/" in suffix or len(set(names)) < len(names):
        raise UserError(f"datarc.files={pattern}: expected {{names}} that differ, .wav at the end")
    rows = []
    for path in listing.files(root, re.sub(r"\{\w+\}", "*", stem) + ".*", f".{suffix}".lower()):
        name = path.relative_to(root).as_posix()
        if groups := re.fullmatch(regex, name.rpartition(".")[0]):
            values = [unicodedata.normalize("NFC", value) for value in groups.groups()]
            rows.append(TableRow(str(path), name, dict(zip(names, values))))
    if not rows:
        listed = first_few(path.name for path in sorted(root.iterdir())) or "nothing"
        raise UserError(f"{root}: no file matches datarc.files={pattern}; the folder has {listed}")
    numbers = re.compile(r"(\d+)").split
    return sorted(rows, key=lambda row: [(len(w), w) if w.isdecimal() else (0, w)
                                         for w in numbers(row.path)])  # fmt: skip


def _json_records(text: str, file: Path, needed: Sequence[str]) -> Records:
    """The objects of a JSON file: one a line, a list, or by their names (as the column ``key``).

    Raises ``UserError`` for anything else, and for an object that lacks a column.
    """
    whole, what = _parsed(text), "entry"
    if isinstance(whole, dict) and all(isinstance(value, dict) for value in whole.values()):
        whole = [{"key": key, **value} for key, value in whole.items()]
    if not isinstance(whole, list):
        whole, what = [_parsed(line) for line in text.split("\n")], "line"
    for number, values in enumerate(whole, start=1):
        if values == "":  # an empty line
            continue
        where = f"{file}, {what} {number}"
        if not isinstance(values, dict) or any(values.get(name) is None for name in needed):
            listed = list(values) if isinstance(values, dict) else values
            wanted = ", ".join(map(repr, needed))
            raise UserError(f"{where}: expected an object with {wanted}, found {str(listed)[:200]}")
        known = {name: value for name, value in values.items() if value is not None}
        yield where, {n: v if isinstance(v, str) else json.dumps(v) for n, v in known.items()}


def _parsed(text: str) -> Any:
    """The JSON value; ``text`` itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _records(
    lines: list[str], file: Path, needed: Sequence[str], form: Form, say: Callable[[str], None]
) -> Records:
    """Where each line is that is not empty, and its fields by the columns' names."""
    delimiter = form.separator or ("\t" if file.suffix.lower() == ".tsv" else ",")
    header = delimiter.join(form.columns) if form.columns else lines[0]
    names = _header(header, file, delimiter, needed)
    lines = [header, *lines] if form.columns else lines
    first = 0 if form.columns else 1  # the number of the header's line
    try:
        rows = _rows(lines, file, delimiter, csv.QUOTE_MINIMAL, first)
    except UserError as error:
        if delimiter == ",":
            raise
        rows = _rows(lines, file, delimiter, csv.QUOTE_NONE, first)
        say(f"{file.name}: quotation marks are read as text ({error})")
    for number, row in enumerate(rows[1:], start=first + 1):
        if row:
            yield f"{file}, line {number}", dict(zip(names, row))


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


def _rows(
    lines: Sequence[str], file: Path, delimiter: str, quoting: int, first: int
) -> list[list[str]]:
    """The fields of every line, of which the first has the number ``first``; none of an empty
    one.
    """
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
        raise UserError(f"{file}, line {len(rows) + first}: {error}") from None
    return rows
