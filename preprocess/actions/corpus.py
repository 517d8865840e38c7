"""Reading people's corpora: lists of files, paths in any spelling, and tables. A row is one line of
a table, so an unpaired quotation mark cannot swallow the next row.
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
    """Lists the files of a corpus, and records by kind the files that it skips."""

    def __init__(self) -> None:
        self._skipped: defaultdict[str, set[Path]] = defaultdict(set)

    def files(self, folder: Path, pattern: str, *suffixes: str) -> list[Path]:
        """Return the sorted paths in ``folder`` that match ``pattern`` and end in one of
        ``suffixes``, upper or lower case. A pattern ending in /, with the suffix "", lists folders.
        """
        paths = []
        for path in sorted(folder.glob(pattern)):
            parts = path.relative_to(folder).parts
            hidden = [p.startswith((".", "~$")) or p.lower() in _SYSTEM_NAMES for p in parts]
            if any(hidden):
                topmost = folder.joinpath(*parts[: hidden.index(True) + 1])
                self._skipped["hidden or system files"].add(topmost)
            elif path.name.lower().endswith(suffixes):
                paths.append(path)
            elif not path.is_dir():
                self._skipped["files of other types"].add(path)
        return paths

    def notes(self) -> list[str]:
        """Return one line per kind of skipped files."""
        return [
            f"skipped {kind}: {len(paths)} ({first_few(path.name for path in sorted(paths))})"
            for kind, paths in self._skipped.items()
        ]


def located(name: str, root: Path, where: str) -> str:
    """Return the path ``name`` relative to ``root``, spelled as on the disk: without ``./``, in the
    Unicode form (NFC or NFD) of the existing file. Raises ``UserError``, which begins with
    ``where``, for a path outside ``root``, a missing path with backslashes, or as ``check_name``.
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


class TableLine(NamedTuple):
    """``where``: the file and line, for errors; ``values``: one text per column, in Unicode NFC."""

    where: str
    path: str
    values: dict[str, str]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def read_files(listing: Listing, root: Path, pattern: str) -> list[TableLine]:
    """Return one line per file below ``root`` that matches ``pattern``, for example
    ``{speaker}/*/{word}_*.wav``. A name in braces is a column; ``**`` matches any folders. Numbers
    in paths are sorted as numbers. Raises ``UserError`` if no file matches.
    """
    stem, dot, suffix = pattern.rpartition(".")
    names = re.findall(r"\{(\w+)\}", stem)
    wild = {"**/": "(?:.*/)?", "*": "[^/]*"}
    parts = re.split(r"(\{\w+\}|\*\*/|\*)", stem)
    regex = "".join("([^/]+)" if p[:1] == "{" else wild.get(p, re.escape(p)) for p in parts)
    if not dot or "/" in suffix or len(set(names)) < len(names):
        raise UserError(f"datarc.files={pattern}: expected distinct {{names}}, and .wav at the end")
    lines = []
    for path in listing.files(root, re.sub(r"\{\w+\}", "*", stem) + ".*", f".{suffix}".lower()):
        name = path.relative_to(root).as_posix()
        if groups := re.fullmatch(regex, name.rpartition(".")[0]):
            values = dict(zip(names, map(_composed, groups.groups())))
            lines.append(TableLine(str(path), name, values))
    if not lines:
        listed = first_few(path.name for path in sorted(root.iterdir())) or "nothing"
        raise UserError(f"{root}: no file matches datarc.files={pattern}; the folder has {listed}")
    numbers = re.compile(r"(\d+)").split
    return sorted(lines, key=lambda line: [(len(w), w) if w.isdecimal() else (0, w)
                                           for w in numbers(line.path)])  # fmt: skip


def read_table(
    file: Path,
    needed: Sequence[str],
    say: Callable[[str], None],
    separator: str | None = None,
    columns: Sequence[str] | Mapping[str, str] = (),
    line_breaks: bool = False,
) -> Iterator[TableLine]:
    """Read a table that has the columns ``needed``; the first of these contains paths.

    ``columns``: the column names, if the first line has none, or {old: new} names for some columns.
    ``line_breaks``: quoted texts may contain line breaks. Otherwise, an unpaired quotation mark in
    a line is an error in a CSV. In other tables it is read as text (Common Voice), and ``say``
    reports it. Raises ``UserError``, with the line, for this and for a wrong number of fields.
    """
    missing = "table not found; set datarc.table, relative to datarc.root_path"
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
    for position, record in records:
        values = {name: _composed(value.strip()) for name, value in record.items()}
        yield TableLine(f"{file}, {position}", record[needed[0]].strip(), values)


def _header(
    line: str, file: Path, delimiter: str, needed: Sequence[str], renamed: Mapping[str, str]
) -> list[str]:
    """Return the column names. Raises ``UserError`` for a missing or duplicate name."""
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    names = [renamed.get(name, name) for name in names]
    if missing := [name for name in needed if name not in names]:
        listed = ", ".join(filter(None, names))[:200] or "nothing"
        guess = next((mark for mark in "\t;,| " if mark in line and len(names) == 1), "")
        what = f"no column {', '.join(map(repr, missing))} in its first line, which has {listed}"
        separator = f"is its separator {guess!r}, not {delimiter!r}?"
        raise UserError(f"{file}: {what}; {separator if guess else 'name your columns in datarc'}")
    if duplicates := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{file}: two columns {duplicates[0]!r} in its first line; rename one")
    return names


def _lines(
    text: str, file: Path, delimiter: str, quoting: int, width: int, line_breaks: bool
) -> list[tuple[int, list[str]]]:
    """Return line number and fields of every non-empty row."""
    lines: list[tuple[int, list[str]]] = []
    end = 0  # the last line of the previous row
    table = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in table:
            if table.line_num != end + 1 and not line_breaks:
                raise csv.Error('a quotation mark closes in another line; write "" for a plain one')
            if any("\0" in field for field in row):
                raise csv.Error("a NUL character; is the table in UTF-16? save it as UTF-8")
            if len(row) not in (0, width):
                remedy = '; put "..." around a text that contains the separator'
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
    """Yield the objects of a JSON file, each after its position. The file contains one object per
    line, or a list of objects, or objects by name (the name becomes the column ``key``).
    """
    content, kind = _parsed(text), "entry"
    if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
        content = [{"key": key, **value} for key, value in content.items()]
    if not isinstance(content, list):
        content, kind = [_parsed(line) for line in text.split("\n")], "line"
    for number, values in enumerate(content, start=1):
        if values == "":  # an empty line
            continue
        if not isinstance(values, dict) or any(values.get(name) is None for name in needed):
            shown = str(list(values) if isinstance(values, dict) else values)[:200]
            form = f"an object with {', '.join(map(repr, needed))}"
            raise UserError(f"{file}, {kind} {number}: expected {form}, found {shown}")
        known = {name: value for name, value in values.items() if value is not None}
        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in known.items()}
        yield f"{kind} {number}", texts


def _parsed(text: str) -> Any:
    """Return the JSON value of ``text``, or ``text`` itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
