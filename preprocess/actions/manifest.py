"""The manifest of a split: which part of which audio file, and its labels; checks; and its units.
It is a TSV as fairseq writes it (the first line is the corpus folder, then ``path`` and ``frames``)
with the columns ``start``, ``file`` (the row's name in all later files), ``labels``, quoted as CSV.
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
    """One row of a manifest. ``start`` and ``frames`` count samples at the file's own rate."""

    path: str  # of the audio file, relative to the corpus folder
    frames: int
    start: int
    file: str  # the row's name: the path, or for example 1.wav:0.500-1.250
    labels: str  # integers, separated by spaces


def write_manifest(path: Path, root: Path, entries: Iterable[Entry]) -> int:
    """Write ``entries``; return their number. Raises as ``check_name`` and ``inside`` do."""
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
    """Return corpus folder and entries. Raises ``UserError`` for a missing or broken manifest."""
    missing = "manifest not found; run preprocess/runner.py --action generate_manifest first"
    table = csv.reader(text_lines(path, missing), **_TSV)
    fields: list[str] = []
    entries = []
    try:
        (root,) = next(table, ["."])
        for number, fields in enumerate(table, start=2):
            if table.line_num != number:  # a quotation mark closes in another line
                raise ValueError
            name, frames, start, file, labels = fields
            inside(name, Path(root), f"{path}, line {number}")
            entry = Entry(name, int(frames), int(start), file, labels)
            if entry.frames < 1 or entry.start < 0 or not are_labels(labels):
                raise ValueError
            entries.append(entry)
    except (csv.Error, ValueError):
        where, shown = f"{path}, line {table.line_num}", " ".join(fields)[:60]
        what = f"expected path, frames, start, file, labels, separated by tabs, found {shown!r}"
        raise UserError(f"{where}: {what}; run --action generate_manifest again") from None
    if not entries:
        raise UserError(f"{path}: no entries; run --action generate_manifest again")
    return Path(root), entries


def inside(name: str, root: Path, where: str) -> str:
    """Return ``name``. Raises ``UserError`` if it is outside ``root``. Ignores symbolic links."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{where}: {name[:80]!r}: expected a path inside {root}")
    return name


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Return the first entry per ``file``, in order: a row drawn ten times is quantised once.
    Raises ``UserError`` if one name means two different pieces of audio.
    """
    by_file: dict[str, Entry] = {}
    for entry in entries:
        first = by_file.setdefault(entry.file, entry)
        if first[:3] != entry[:3]:
            raise UserError(f"{entry.file}: names two pieces of audio, {first[:3]} and {entry[:3]}")
    return list(by_file.values())


def first_few(names: Iterable[str]) -> str:
    """Return ``a, b, c, …``: the first three names."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3] + ["…"] * (len(names) > 3))


def warnings_of(
    labels: Mapping[str, Sequence[str]],
    splits: Mapping[str, Sequence[Utterance]],
    expected: Mapping[str, int],
) -> Iterator[str]:
    """Yield one line per problem: labels of a slot that look alike, recordings in two splits,
    counts that differ from ``expected``. Raises ``UserError`` for a recording with two answers.
    """
    problems = {f"{slot}s that look alike": _alike(names) for slot, names in labels.items()}
    problems["recordings that are in two splits"] = _in_two_splits(splits)
    for what, names in problems.items():
        if names:
            yield f"warning, {what}: {len(names)} ({first_few(names)})"
    counts = {split: len(rows) for split, rows in splits.items()}
    counts["classes"] = sum(map(len, labels.values()))
    if unknown := expected.keys() - counts:
        raise UserError(f"datarc.expected: {unknown.pop()}: expected one of {', '.join(counts)}")
    if wrong := [key for key, number in expected.items() if counts[key] != number]:
        listed = ", ".join(f"{key} {counts[key]:,} (expected {expected[key]:,})" for key in wrong)
        yield f"warning, not the corpus's known size: {listed}"


def _alike(names: Sequence[str]) -> list[str]:
    """Return pairs that differ only in case, spaces, invisible characters or Unicode form."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        visible = "".join(char for char in plain if unicodedata.category(char) != "Cf")
        first = seen.setdefault(" ".join(visible.split()), name)
        if first != name and len(name) > 1:  # characters of a text may look alike
            pairs.append(f"{first!r} and {name!r}")
    return pairs


def _in_two_splits(splits: Mapping[str, Sequence[Utterance]]) -> list[str]:
    seen: dict[str, tuple[str, tuple[str, ...]]] = {}
    names = []
    for split, utterances in splits.items():
        for utterance in utterances:
            name, answer = utterance.name or utterance.path, tuple(utterance.labels)
            first_split, first_answer = seen.setdefault(name, (split, answer))
            if first_answer != answer:
                first_labels, labels = ", ".join(first_answer)[:80], ", ".join(answer)[:80]
                what = f"{name}: is {first_labels} in {first_split}, {labels} in {split}"
                raise UserError(f"{what}; one recording has one answer")
            if first_split != split:
                names.append(name)
    return names


def audio_record(path: Path, command: str) -> tuple[dict[str, Any], set[str]]:
    """Return the ``provenance.json`` of an audio run ({}: none), and the files it left out."""
    record = read_json(path, command) if path.exists() else {}
    names = record.get("left_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: left_out: expected a list of names; run {command} again")
    return record, set(names)


def made_from(manifest: Path) -> dict[str, Any]:
    """Return the SHA-256 of each manifest, and of the list of audio pieces in them (audio is not
    read). Raises ``UserError`` if a manifest is missing or broken.
    """
    paths = {split: manifest / f"{split}.tsv" for split in SPLITS}
    tables = map(read_manifest, paths.values())
    pieces = repr([(str(root), [e[:4] for e in distinct(entries)]) for root, entries in tables])
    return {
        "manifest": {split: sha256(path) for split, path in paths.items()},
        "heard": hashlib.sha256(pieces.encode()).hexdigest(),
    }


def unit_rows(manifest: Path, quantized: Path, split: str, merge: bool) -> tuple[list[Row], int]:
    """Return one row per entry of ``split`` with good audio, and the number of other entries.
    ``merge``: merge repeated units. Raises ``UserError`` if units are missing or of other audio.
    """
    _, entries = read_manifest(manifest / f"{split}.tsv")
    path = quantized / split
    lines = text_lines(path, f"this split is missing; run {QUANTIZE} first")
    units = {file: text for file, _, text in (line.rpartition("|") for line in lines if line)}
    record, left_out = audio_record(quantized / "provenance.json", QUANTIZE)
    good = [entry.file for entry in distinct(entries) if entry.file not in left_out]
    plan, now = record.get("plan"), made_from(manifest)
    planned = plan.get("manifest") if isinstance(plan, dict) else None
    same_audio = record.get("manifest") == planned and record.get("heard") == now["heard"]
    if list(units) != good or not (planned in (None, now["manifest"]) or same_audio):
        what = f"{path}: its units are not of the audio that {manifest / split}.tsv lists"
        raise UserError(f"{what}; the manifest has changed: run {QUANTIZE} again")
    row_units = merge_runs if merge else str
    usable = [entry for entry in entries if entry.file in units]
    rows = [Row(entry.file, row_units(units[entry.file]), entry.labels) for entry in usable]
    if not rows:
        raise UserError(f"{path}: no usable file in this split; repair its audio")
    return rows, len(entries) - len(rows)
