"""What people's corpora hold beside audio, how they spell it, and what is checked of all rows."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from preprocess.actions.manifest import inside

if TYPE_CHECKING:
    from preprocess.preprocessor import Utterance

_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin"}


class Listing:
    """Lists a corpus's files, and keeps what it passes over: what systems leave there (hidden
    names, ``Thumbs.db``, ``__MACOSX``), and files of another kind.
    """

    def __init__(self) -> None:
        self.passed_over: dict[str, set[Path]] = {
            "that systems leave": set(),
            "of another kind": set(),
        }

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


def first_few(names: Iterable[str]) -> str:
    """``a, b, c, …``"""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3] + ["…"] * (len(names) > 3))


def notes(
    listing: Listing,
    labels: Mapping[str, Sequence[str]],
    splits: Mapping[str, Sequence[Utterance]],
    expected: Mapping[str, int],
) -> list[str]:
    """A line each about what was passed over, labels that look alike (by slot), recordings in two
    splits, and counts other than ``expected``. Raises ``UserError`` as ``_alike`` and
    ``_in_two_splits`` do, and for an unknown count.
    """
    counts = {split: len(rows) for split, rows in splits.items()}
    counts["classes"] = sum(map(len, labels.values()))
    if unknown := [key for key in expected if key not in counts]:
        raise UserError(f"datarc.expected: {unknown[0]}: expected one of {', '.join(counts)}")
    differing = [
        f"{key} {counts[key]:,} (expected {number:,})"
        for key, number in expected.items()
        if counts[key] != number
    ]
    counted = {
        f"passed over, {kind}": [path.name for path in sorted(paths)]
        for kind, paths in listing.passed_over.items()
    }
    counted |= {
        f"warning, {slot}s that look alike": _alike(slot, names) for slot, names in labels.items()
    }
    counted["warning, recordings that are in two splits"] = _in_two_splits(splits)
    lines = [
        f"{what}: {len(names)} ({first_few(names)})" for what, names in counted.items() if names
    ]
    if differing:
        lines.append(f"warning, not the corpus's known size: {', '.join(differing)}")
    return lines


def located(name: str, root: Path, where: str) -> str:
    """The path of ``name`` from ``root`` on, as the disk spells it: without ``./``, relative where
    it is an absolute one inside ``root``, in the Unicode form (NFC or NFD) of what exists.

    Raises ``UserError``, which begins with ``where``, for a path that leads out of ``root``, and
    for one with backslashes that does not exist.
    """
    for base in (root, root.resolve()):
        if PurePath(name).is_absolute() and PurePath(name).is_relative_to(base):
            name = PurePath(name).relative_to(base).as_posix()
    name = str(PurePosixPath(inside(name, root, where)))
    if (root / name).exists():
        return name
    if "\\" in name:
        raise UserError(f"{where}: {name[:80]!r}: not found; write / between folders, not \\")
    path = root
    for part in PurePosixPath(name).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path /= next((form for form in forms if (path / form).exists()), part)
    return path.relative_to(root).as_posix()


def _alike(slot: str, names: Sequence[str]) -> list[str]:
    """The pairs of labels that differ in case, spaces and invisible characters alone. Raises
    ``UserError`` for two that differ in their Unicode form alone.
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        composed = unicodedata.normalize("NFC", name)
        plain = unicodedata.normalize("NFKC", name).casefold() if len(name) > 1 else composed
        visible = "".join(char for char in plain if unicodedata.category(char) != "Cf")
        other = seen.setdefault(" ".join(visible.split()), name)
        if other != name and unicodedata.normalize("NFC", other) == composed:
            raise UserError(
                f"{slot} {other!a} and {name!a}: one label in two Unicode forms; write it in one"
            )
        pairs += [f"{other!r} and {name!r}"] if other != name else []
    return pairs


def _in_two_splits(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """The rows' names that two splits have. Raises ``UserError`` for one with two answers."""
    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    shared = []
    for split, utterances in splits.items():
        for utterance in utterances:
            name, answer = utterance.name or utterance.path, tuple(utterance.labels)
            other_split, other = first.setdefault(name, (split, answer))
            if other != answer:
                raise UserError(
                    f"{name}: is {', '.join(other)[:80]} in {other_split}, "
                    f"{', '.join(answer)[:80]} in {split}; one recording has one answer"
                )
            shared += [name] if other_split != split else []
    return shared
