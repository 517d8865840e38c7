"""What people's corpora hold beside audio, under which names, and what is checked of them all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from preprocess.actions.manifest import inside

if TYPE_CHECKING:
    from preprocess.preprocessor import Utterance

_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin"}


class Listing:
    """Lists a corpus's files and folders, and counts what it passes over: what systems leave there
    (hidden names, ``Thumbs.db``, ``__MACOSX``), and files of another kind.
    """

    def __init__(self) -> None:
        self.left_by_systems: set[Path] = set()
        self.of_another_kind: set[Path] = set()

    def files(self, folder: Path, pattern: str, *suffixes: str) -> list[Path]:
        """The files in ``folder`` that match ``pattern`` and end in one of ``suffixes``, in small
        or capital letters, sorted.
        """
        paths = []
        for path in self._visible(folder, pattern):
            if path.name.lower().endswith(suffixes):
                paths.append(path)
            elif not path.is_dir():
                self.of_another_kind.add(path)
        return paths

    def folders(self, folder: Path) -> list[Path]:
        """The folders in ``folder``, sorted."""
        return [path for path in self._visible(folder, "*") if path.is_dir()]

    def _visible(self, folder: Path, pattern: str) -> Iterable[Path]:
        for path in sorted(folder.glob(pattern)):
            parts = path.relative_to(folder).parts
            left = [part.startswith((".", "~$")) or part.lower() in _SYSTEM_NAMES for part in parts]
            if any(left):
                self.left_by_systems.add(folder.joinpath(*parts[: left.index(True) + 1]))
            else:
                yield path

    def report(self) -> list[str]:
        """A line for each kind of thing that was passed over."""
        kinds = {
            "that systems leave": self.left_by_systems,
            "of another kind": self.of_another_kind,
        }
        return [
            f"passed over, {len(paths)} {kind}: {first_few(path.name for path in sorted(paths))}"
            for kind, paths in kinds.items()
            if paths
        ]


def first_few(names: Iterable[str], most: int = 3) -> str:
    """``a, b, c, …``"""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most] + ["…"] * (len(names) > most))


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


def check_labels(names: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for the names of a slot that print alike (case, spaces, invisible characters).

    Raises ``UserError`` where two differ in their Unicode form alone.
    """
    lines = []
    for slot, slot_names in names.items():
        alike: dict[str, list[str]] = {}
        for name in slot_names:
            alike.setdefault(_appearance(name), []).append(name)
        pairs = [pair for group in alike.values() for pair in combinations(group, 2)]
        for one, other in pairs:
            if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
                raise UserError(
                    f"{slot} {one!a} and {other!a}: one label in two Unicode forms; write it in one"
                )
        if pairs:
            listed = first_few(f"{one!r} and {other!r}" for one, other in pairs)
            lines.append(f"warning: these {slot}s look alike, and stay different: {listed}")
    return lines


def _appearance(name: str) -> str:
    if len(name) == 1:  # a character of a text
        return unicodedata.normalize("NFC", name)
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def check_rows(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    """A line about recordings that are in two splits.

    Raises ``UserError`` for one that has two different answers.
    """
    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    shared: dict[str, None] = {}
    for split, utterances in splits.items():
        for utterance in utterances:
            name, labels = utterance.name or utterance.path, tuple(utterance.labels)
            other_split, other = first.setdefault(name, (split, labels))
            if other != labels:
                one, two = ("".join(some) if len(some) > 9 else ", ".join(some)
                            for some in (other, labels))  # fmt: skip
                raise UserError(
                    f"{name}: listed twice, as {one[:60]!r} ({other_split}) and as {two[:60]!r} "
                    f"({split})"
                )
            if other_split != split:
                shared[name] = None
    if not shared:
        return []
    return [f"warning: {len(shared)} recordings are in two splits: {first_few(shared)}"]
