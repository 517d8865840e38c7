"""The manifest of a split: which audio, which part of it, which labels.

A TSV as fairseq writes it (first line the corpus folder, then ``path`` and ``frames``), with three
more columns: ``start``, ``file`` (the name that the row keeps to the end) and ``labels``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import writing


class Entry(NamedTuple):
    """One row. ``start`` and ``frames`` count samples at the file's own rate; ``labels`` are
    integers and spaces.
    """

    path: str  # relative to the corpus folder
    frames: int
    start: int
    file: str
    labels: str


def write_manifest(path: Path, root: Path, entries: Iterable[Entry]) -> int:
    """Write ``entries`` atomically and return how many. Raises ``UserError`` for a name with a tab
    or a line break, and for a path that leaves the corpus.
    """
    count = 0
    with writing(path) as handle:
        handle.write(f"{_one_field(str(root))}\n")
        for entry in entries:
            inside(entry.path, root, str(root))
            handle.write("\t".join(_one_field(str(value)) for value in entry) + "\n")
            count += 1
    return count


def read_manifest(path: Path) -> tuple[Path, list[Entry]]:
    """Read the corpus folder and the entries. Raises ``UserError`` for a missing, broken or empty
    manifest, and for a path that leaves the corpus.
    """
    try:
        root, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"{path}: manifest not found; run preprocess/runner.py --action generate_manifest first"
        ) from None
    entries = []
    for number, line in enumerate(lines, start=2):
        try:
            name, frames, start, file, labels = line.split("\t")
            entry = Entry(name, int(frames), int(start), file, labels)
            if entry.frames < 1 or entry.start < 0:
                raise ValueError
            entries.append(entry)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: expected path, frames, start, file, labels and tabs, "
                f"found {line[:60]!r}; run --action generate_manifest again"
            ) from None
        inside(name, Path(root), f"{path}, line {number}")
    if not entries:
        raise UserError(f"{path}: no entries; run --action generate_manifest again")
    return Path(root), entries


def inside(name: str, root: Path, where: str) -> str:
    """Return ``name``. Raises ``UserError``, which begins with ``where``, for a path that leads out
    of ``root``. What is a link in the corpus is its owner's.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{where}: {name[:80]!r}: expected a path inside {root}")
    return name


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """The first entry of each ``file``, in order: a file that is drawn ten times is quantised once.

    Raises ``UserError`` when one name stands for two different pieces of audio.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        first = found.setdefault(entry.file, entry)
        if first[:3] != entry[:3]:
            raise UserError(f"{entry.file}: names two pieces of audio, {first[:3]} and {entry[:3]}")
    return list(found.values())


def _one_field(text: str) -> str:
    if any(character in text for character in "\t\r\n"):
        raise UserError(
            f"{text!r}: a name with a tab or a line break cannot stand in a manifest; rename it"
        )
    return text
