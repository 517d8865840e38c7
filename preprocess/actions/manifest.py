"""The manifest of a split: which audio, which part of it, which labels; checks, and its units. A
TSV as fairseq writes it (first line the corpus folder, then ``path`` and ``frames``), with columns
``start``, ``file`` (the row's name to the end) and ``labels``, quoted as in CSV.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, text_lines, writing
from pipeline.rows import SPLITS, Row, are_labels, check_name
from preprocess.speech2unit.features import merge_runs

if TYPE_CHECKING:
    from preprocess.preprocessor import Utterance

QUANTIZE = "preprocess/runner.py --action quantized"
_TSV = {"delimiter": "\t", "lineterminator": "\n", "strict": True}


class Entry(NamedTuple):
    """One row. ``start`` and ``frames`` count samples at the file's own rate."""

    path: str  # relative to the corpus folder
    frames: int
    start: int
    file: str
    labels: str  # integers and spaces


def write_manifest(path: Path, root: Path, entries: Iterable[Entry]) -> int:
    """Write ``entries`` and return how many. Raises ``UserError`` as ``check_name``, ``inside``."""
    count = 0
    with writing(path) as handle:
        table = csv.writer(handle, **_TSV)
        table.writerow([check_name(str(root))])
        for entry in entries:
            check_name(entry.file)
            inside(check_name(entry.path), root, str(root))
            table.writerow(entry)
            count += 1
    return count


def read_manifest(path: Path) -> tuple[Path, list[Entry]]:
    """The corpus folder and the entries. Raises ``UserError`` for a missing or broken manifest."""
    missing = "manifest not found; run preprocess/runner.py --action generate_manifest first"
    table = csv.reader(text_lines(path, missing), **_TSV)
    fields: list[str] = []
    entries = []
    try:
        (root,) = next(table, ["."])
        for number, fields in enumerate(table, start=2):
            if table.line_num != number:  # a quotation mark that closes in another line
                raise ValueError
            name, frames, start, file, labels = fields
            inside(name, Path(root), f"{path}, line {number}")
            entry = Entry(name, int(frames), int(start), file, labels)
            if entry.frames < 1 or entry.start < 0 or not are_labels(labels):
                raise ValueError
            entries.append(entry)
    except (csv.Error, ValueError):
        what = f"path, frames, start, file, labels and tabs, found {' '.join(fields)[:60]!r}"
        what = f"{path}, line {table.line_num}: expected {what}"
        raise UserError(f"{what}; run --action generate_manifest again") from None
    if not entries:
        raise UserError(f"{path}: no entries; run --action generate_manifest again")
    return Path(root), entries


def inside(name: str, root: Path, where: str) -> str:
    """Return ``name``. Raises ``UserError`` for a path that leads out of ``root``, links apart."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{where}: {name[:80]!r}: expected a path inside {root}")
    return name


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """The first entry of each ``file``, in order: what is drawn ten times is quantised once. Raises
    ``UserError`` when one name stands for two different pieces of audio.
    """
    by_file: dict[str, Entry] = {}
    for entry in entries:
        first = by_file.setdefault(entry.file, entry)
        if first[:3] != entry[:3]:
            raise UserError(f"{entry.file}: names two pieces of audio, {first[:3]} and {entry[:3]}")
    return list(by_file.values())


def first_few(names: Iterable[str]) -> str:
    """``a, b, c, …``"""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3] + ["…"] * (len(names) > 3))


def warnings_of(
    labels: Mapping[str, Sequence[str]],
    splits: Mapping[str, Sequence[Utterance]],
    expected: Mapping[str, int],
) -> Iterator[str]:
    """A line each about labels that look alike (by slot), recordings in two splits, and counts
    other than ``expected``. Raises ``UserError`` for a recording with two answers.
    """
    counted = {f"{slot}s that look alike": _alike(names) for slot, names in labels.items()}
    counted["recordings that are in two splits"] = _in_two_splits(splits)
    for what, names in counted.items():
        if names:
            yield f"warning, {what}: {len(names)} ({first_few(names)})"
    counts = {split: len(rows) for split, rows in splits.items()}
    counts["classes"] = sum(map(len, labels.values()))
    if unknown := expected.keys() - counts:
        raise UserError(f"datarc.expected: {unknown.pop()}: expected one of {', '.join(counts)}")
    wrong = [key for key, number in expected.items() if counts[key] != number]
    if wrong:
        listed = ", ".join(f"{key} {counts[key]:,} (expected {expected[key]:,})" for key in wrong)
        yield f"warning, not the corpus's known size: {listed}"


def _alike(names: Sequence[str]) -> list[str]:
    """The pairs that differ in case, spaces, invisible characters or Unicode form alone."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        visible = "".join(char for char in plain if unicodedata.category(char) != "Cf")
        other = seen.setdefault(" ".join(visible.split()), name)
        if other != name and len(name) > 1:  # a text's characters differ
            pairs.append(f"{other!r} and {name!r}")
    return pairs


def _in_two_splits(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    shared = []
    for split, utterances in splits.items():
        for utterance in utterances:
            name, answer = utterance.name or utterance.path, tuple(utterance.labels)
            other_split, other = first.setdefault(name, (split, answer))
            if other != answer:
                one, two = ", ".join(other)[:80], ", ".join(answer)[:80]
                what = f"{name}: is {one} in {other_split}, {two} in {split}"
                raise UserError(f"{what}; one recording has one answer")
            if other_split != split:
                shared.append(name)
    return shared


def audio_record(record: Path, command: str) -> tuple[dict[str, Any], set[str]]:
    """The ``provenance.json`` of an audio run, if any, and the files that the run left out."""
    made = read_json(record, command) if record.exists() else {}
    names = made.get("left_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{record}: left_out is no list of names; run {command} again")
    return made, set(names)


def made_from(manifest: Path) -> dict[str, Any]:
    """The SHA-256 of each split's ``manifest``, and of all that is ``heard``; if any."""
    paths = {split: manifest / f"{split}.tsv" for split in SPLITS}
    if not all(path.exists() for path in paths.values()):
        return {}
    tables = map(read_manifest, paths.values())
    heard = repr([(str(root), [e[:4] for e in distinct(entries)]) for root, entries in tables])
    return {
        "manifest": {split: sha256(path) for split, path in paths.items()},
        "heard": hashlib.sha256(heard.encode()).hexdigest(),
    }


def unit_rows(manifest: Path, quantized: Path, split: str, merge: bool) -> tuple[list[Row], int]:
    """A row for each entry of ``split`` whose audio was good (``merge``: without runs of a unit),
    and how many have none. Raises ``UserError`` for units that are missing, or of other audio.
    """
    _, entries = read_manifest(manifest / f"{split}.tsv")
    path = quantized / split
    lines = text_lines(path, f"this split is missing; run {QUANTIZE} first")
    units = {file: text for file, _, text in (line.rpartition("|") for line in lines if line)}
    made, left_out = audio_record(quantized / "provenance.json", QUANTIZE)
    good = [entry.file for entry in distinct(entries) if entry.file not in left_out]
    plan, now = made.get("plan"), made_from(manifest)
    planned = plan.get("manifest") if isinstance(plan, dict) else None
    same_audio = made.get("manifest") == planned and made.get("heard") == now["heard"]
    if list(units) != good or not (planned in (None, now["manifest"]) or same_audio):
        what = f"{path}: units of other audio than {manifest / split}.tsv lists"
        raise UserError(f"{what}; the manifest has changed: run {QUANTIZE} again")
    merged = merge_runs if merge else str
    usable = [entry for entry in entries if entry.file in units]
    rows = [Row(entry.file, merged(units[entry.file]), entry.labels) for entry in usable]
    if not rows:
        raise UserError(f"{path}: no usable file in this split; repair its audio")
    return rows, len(entries) - len(rows)
