"""What people's corpora hold: files, paths as somebody spelled them, and tables. A row is one line
of a table, so that no quotation mark can swallow the next.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import text_lines
from pipeline.rows import check_name
from preprocess.actions.manifest import first_few, inside

_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin"}


class Listing:
    """Lists a corpus's files, and keeps by kind what it passes over, such as hidden files."""

    def __init__(self) -> None:
        self.passed_over: defaultdict[str, set[Path]] = defaultdict(set)

    def files(self, folder: Path, pattern: str, *suffixes: str) -> list[Path]:
        """What matches ``pattern`` in ``folder`` and ends in one of ``suffixes``, in small or
        capital letters, sorted. A pattern that ends in / and the suffix "" list folders.
        """
        paths = []
        for path in sorted(folder.glob(pattern)):
            parts = path.relative_to(folder).parts
            left = [part.startswith((".", "~$")) or part.lower() in _SYSTEM_NAMES for part in parts]
            if any(left):
                whole = folder.joinpath(*parts[: left.index(True) + 1])
                self.passed_over["that systems leave"].add(whole)
            elif path.name.lower().endswith(suffixes):
                paths.append(path)
            elif not path.is_dir():
                self.passed_over["of another kind"].add(path)
        return paths

    def notes(self) -> list[str]:
        """A line for each kind."""
        return [
            f"passed over, {kind}: {len(paths)} ({first_few(path.name for path in sorted(paths))})"
            for kind, paths in self.passed_over.items()
        ]


def located(name: str, root: Path, where: str) -> str:
    """The path of ``name`` from ``root`` on, as the disk spells it: without ``./``, in the Unicode
    form (NFC or NFD) of what exists. Raises ``UserError``, which begins with ``where``, for a path
    that leads out of ``root``, and for an absent one with backslashes; also as ``check_name``.
    """
    for base in (root, root.resolve()):
        if PurePath(name).is_absolute() and PurePath(name).is_relative_to(base):
            name = PurePath(name).relative_to(base).as_posix()
    name = str(PurePosixPath(inside(check_name(name), root, where)))
    if (root / name).exists():
        return name
    if "\\" in name:
        raise UserError(f"{where}: {name[:80]!r}: not found; write / between folders, not \\")
    path = root
    for part in PurePosixPath(name).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path /= next((form for form in forms if (path / form).exists()), part)
    return path.relative_to(root).as_posix()


class Row(NamedTuple):
    """``where`` names file and line; ``values``: what is in each column, in Unicode's NFC."""

    where: str
    path: str
    values: dict[str, str]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def read_files(listing: Listing, root: Path, pattern: str) -> list[Row]:
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
            rows.append(Row(str(path), name, dict(zip(names, map(_composed, groups.groups())))))
    if not rows:
        listed = first_few(path.name for path in sorted(root.iterdir())) or "nothing"
        raise UserError(f"{root}: no file matches datarc.files={pattern}; the folder has {listed}")
    numbers = re.compile(r"(\d+)").split
    return sorted(rows, key=lambda row: [(len(w), w) if w.isdecimal() else (0, w)
                                         for w in numbers(row.path)])  # fmt: skip


def read_table(
    file: Path,
    needed: Sequence[str],
    say: Callable[[str], None],
    separator: str | None = None,
    columns: Sequence[str] | Mapping[str, str] = (),
    line_breaks: bool = False,
) -> Iterator[Row]:
    """Read a table that has the columns ``needed``, the first of which holds paths.

    ``columns``: their names, where the first line has none, or new names for some. ``line_breaks``:
    texts in quotation marks may have some. Other quotation marks that do not pair up within a line
    are text where tabs separate (Common Voice), which ``say`` tells. Raises ``UserError``, naming
    the line, for such a mark in a CSV, and for more or fewer fields than columns.
    """
    missing = "table not found; datarc.table names it, relative to datarc.root_path"
    text = "\n".join(text_lines(file, missing)).replace("\r", "\n")
    if file.suffix.lower() in (".json", ".jsonl"):
        records = _json_records(text, file, needed)
    else:
        delimiter = separator or ("\t" if file.suffix.lower() == ".tsv" else ",")
        renamed = columns if isinstance(columns, Mapping) else {}
        has_names = bool(renamed or not columns)
        line = text.partition("\n")[0] if has_names else delimiter.join(columns)
        names = _header(line, file, delimiter, needed, renamed)
        try:
            lines = _lines(text, file, delimiter, csv.QUOTE_MINIMAL, len(names), line_breaks)
        except UserError as error:
            if delimiter == ",":
                raise
            lines = _lines(text, file, delimiter, csv.QUOTE_NONE, len(names), line_breaks)
            say(f"{file.name}: quotation marks are read as text ({error})")
        lines = lines[1:] if has_names else lines
        records = ((f"line {number}", dict(zip(names, fields))) for number, fields in lines)
    for place, record in records:
        values = {name: _composed(value.strip()) for name, value in record.items()}
        yield Row(f"{file}, {place}", record[needed[0]].strip(), values)


def _header(
    line: str, file: Path, delimiter: str, needed: Sequence[str], renamed: Mapping[str, str]
) -> list[str]:
    """The columns' names. Raises ``UserError`` for one that is missing or there twice."""
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    names = [renamed.get(name, name) for name in names]
    if missing := [name for name in needed if name not in names]:
        listed = ", ".join(filter(None, names))[:200] or "nothing"
        other = next((mark for mark in "\t;,| " if mark in line and len(names) == 1), "")
        what = f"no column {', '.join(map(repr, missing))} in its first line, which has {listed}"
        own = f"is its separator {other!r}, not {delimiter!r}?" if other else ""
        remedy = own or "name yours in datarc"
        raise UserError(f"{file}: {what}; {remedy}")
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{file}: two columns {twice[0]!r} in its first line; rename one")
    return names


def _lines(
    text: str, file: Path, delimiter: str, quoting: int, width: int, line_breaks: bool
) -> list[tuple[int, list[str]]]:
    """Number and fields of every line that is not empty."""
    lines: list[tuple[int, list[str]]] = []
    end = 0  # line at which the row before ended
    table = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in table:
            if table.line_num != end + 1 and not line_breaks:
                raise csv.Error('a quotation mark closes in another line; write "" for one')
            if any("\0" in field for field in row):
                raise csv.Error("a NUL character; is the table in UTF-16? save it as UTF-8")
            if len(row) not in (0, width):
                remedy = '; put "..." around a text that holds the separator'
                counts = f"{len(row)} fields, the first line has {width}"
                raise csv.Error(counts + remedy * (len(row) > width))
            if row:
                lines.append((end + 1, row))
            end = table.line_num
    except csv.Error as error:
        raise UserError(f"{file}, line {end + 1}: {error}") from None
    return lines


def _json_records(
    text: str, file: Path, needed: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The objects of a JSON file: one a line, a list, or by their names (as the column ``key``)."""
    whole, what = _parsed(text), "entry"
    if isinstance(whole, dict) and all(isinstance(value, dict) for value in whole.values()):
        whole = [{"key": key, **value} for key, value in whole.items()]
    if not isinstance(whole, list):
        whole, what = [_parsed(line) for line in text.split("\n")], "line"
    for number, values in enumerate(whole, start=1):
        if values == "":  # an empty line
            continue
        if not isinstance(values, dict) or any(values.get(name) is None for name in needed):
            found = str(list(values) if isinstance(values, dict) else values)[:200]
            form = f"an object with {', '.join(map(repr, needed))}"
            raise UserError(f"{file}, {what} {number}: expected {form}, found {found}")
        known = {name: value for name, value in values.items() if value is not None}
        written = {n: v if isinstance(v, str) else json.dumps(v) for n, v in known.items()}
        yield f"{what} {number}", written


def _parsed(text: str) -> Any:
    """The JSON value; ``text`` itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
