"""What a shared prompt says of itself: the prompt.json beside its prompt.safetensors.

The file may come from a stranger: every value is checked, with an error of one line, and none of
them is ever taken for a path.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_json

FORMAT = 1
RECORD, TENSORS, README = "prompt.json", "prompt.safetensors", "README.md"
MADE_BY = "ulm_prompt/export.py"
MOST_SEQUENCES = 10_000  # of label sequences that a record holds
MOST_LABELS = 10_000  # of an utterance
MOST_BYTES = 1 << 26  # of a prompt.json
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # it takes part in file names here
_DIGITS = re.compile(r"[0-9]{1,9}")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class UnitSettings:
    """How audio became the units that a prompt was trained on."""

    feature_type: str
    layer: int | None
    normalize: bool | None
    merge: bool
    kmeans: str | None  # fingerprint of the centres; None: units that were made elsewhere


@dataclass(frozen=True)
class PromptRecord:
    """A trained prompt: what it answers, and what it belongs to."""

    task: str
    unit_model: str
    units: UnitSettings
    labels: dict[str, dict[str, str]]  # label -> its slot and name
    labels_per_utterance: int  # 0: texts
    most_labels: int  # of an utterance of train
    label_sequences: list[list[str]] | None  # those that train has; None: not known, or too many
    verbalizer: str
    verbal: dict[str, str]  # label -> unit
    prefix_prompt_length: int
    lm_fingerprint: str  # "": not known before the LM is loaded (a published checkpoint)
    lm_parameters: int
    dict_fingerprint: str
    recipe: str | None
    training: dict[str, Any]  # the recipe's knobs, the seed among them
    trained_parameters: int
    valid: dict[str, float]
    test: dict[str, float]
    license: str | None
    made_by: dict[str, Any]

    def name(self, label: str) -> str:
        """A label as people call it."""
        return self.labels[label]["name"]

    @property
    def is_text(self) -> bool:
        """Whether an answer has any number of labels."""
        return self.labels_per_utterance == 0


def is_export(folder: Path) -> bool:
    """Whether a shared prompt lies in ``folder``."""
    return (folder / TENSORS).is_file()


def write_record(folder: Path, record: PromptRecord) -> None:
    """Write prompt.json. Raises ``UserError`` where it would not be read back."""
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    _check(values, folder / RECORD)
    write_json(folder / RECORD, values, indent=1)


def read_record(folder: Path) -> PromptRecord:
    """Read and check prompt.json. Raises ``UserError``, one line, for anything that is not as
    export.py writes it.
    """
    path = folder / RECORD
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; expected a prompt's record")
    values = read_json(path, MADE_BY)
    _check(values, path)
    values = {name: value for name, value in values.items() if name != "format"}
    return PromptRecord(**{**values, "units": UnitSettings(**values["units"])})


def _check(values: Any, path: Path) -> None:
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected a prompt's record of format {FORMAT}; export it with {MADE_BY}"
        )
    for part, prefix, checks in ((values, "", _CHECKS), (values.get("units"), "units.", _UNITS)):
        if not isinstance(part, dict):
            raise _wrong(path, "units", "an object", part)
        if part.keys() != checks.keys():
            odd = min(part.keys() ^ checks.keys())
            problem = "is missing" if odd in checks else "is not known here"
            raise UserError(f"{path}: {_shown(prefix + odd)} {problem}; run {MADE_BY} again")
        for name, (expected, fits) in checks.items():
            if not fits(part[name]):
                raise _wrong(path, prefix + name, expected, part[name])
    labels, verbal = values["labels"], values["verbal"]
    if labels.keys() != verbal.keys() or len(set(verbal.values())) != len(verbal):
        raise _wrong(path, "verbal", "a unit of its own for each of labels", verbal)
    if values["labels_per_utterance"] > values["most_labels"]:
        raise _wrong(path, "labels_per_utterance", "at most most_labels", values["most_labels"])
    for sequence in values["label_sequences"] or []:
        if not set(sequence) <= labels.keys() or len(sequence) > values["most_labels"]:
            raise _wrong(path, "label_sequences", "at most most_labels of labels", sequence)


def _wrong(path: Path, name: str, expected: str, found: Any) -> UserError:
    return UserError(f"{path}: {name}: expected {expected}, found {_shown(found)}")


def _shown(value: Any) -> str:
    """A stranger's value on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_name(value: Any) -> bool:
    """Whether it may take part in the name of a file."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    """One line that a terminal shows as it is."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_digits(value: Any) -> bool:
    return isinstance(value, str) and _DIGITS.fullmatch(value) is not None


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def _are_labels(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(
            _is_digits(label)
            and isinstance(entry, dict)
            and entry.keys() == {"slot", "name"}
            and all(map(_is_text, entry.values()))
            for label, entry in value.items()
        )
    )


def _are_sequences(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_SEQUENCES
        and all(
            isinstance(sequence, list) and sequence and all(map(_is_digits, sequence))
            for sequence in value
        )
    )


def _are_scores(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_text(name) and type(score) in (int, float) and math.isfinite(score)
        for name, score in value.items()
    )


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Facts for a reader, which nothing here depends on: names with values, and lists."""
    if isinstance(value, dict):
        return depth > 0 and all(
            _is_text(name) and _is_plain(entry, depth - 1) for name, entry in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(entry, depth - 1) for entry in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int)) or value == "" or _is_text(value)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_A_NAME = ("a name of letters, digits, and _ . -", is_name)
_A_COUNT = ("a count", _is_count)
_POSITIVE = ("a count of at least 1", lambda value: _is_count(value) and value > 0)
_PLAIN = ("an object of plain values", lambda value: isinstance(value, dict) and _is_plain(value))
_SCORES = ("an object of numbers", _are_scores)
_PRINT = ("16 digits 0-9a-f", _is_fingerprint)
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("the format", _is_count),
    "task": _A_NAME,
    "unit_model": _A_NAME,
    "units": ("an object", lambda value: isinstance(value, dict)),
    "labels": ('an object of label: {"slot": ..., "name": ...}', _are_labels),
    "labels_per_utterance": _A_COUNT,
    "most_labels": ("1 to 10,000", lambda value: _is_count(value) and 0 < value <= MOST_LABELS),
    "label_sequences": ("lists of labels, or null", _or_none(_are_sequences)),
    "verbalizer": _A_NAME,
    "verbal": (
        "an object of label: unit",
        lambda value: isinstance(value, dict) and all(map(_is_digits, value.values())),
    ),
    "prefix_prompt_length": _POSITIVE,
    "lm_fingerprint": _PRINT,
    "lm_parameters": _A_COUNT,
    "dict_fingerprint": _PRINT,
    "recipe": ("a name, or null", _or_none(is_name)),
    "training": _PLAIN,
    "trained_parameters": _A_COUNT,
    "valid": _SCORES,
    "test": _SCORES,
    "license": ("one line, or null", _or_none(_is_text)),
    "made_by": _PLAIN,
}
_UNITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "feature_type": _A_NAME,
    "layer": ("a count, or null", _or_none(_is_count)),
    "normalize": ("true, false or null", _or_none(lambda value: isinstance(value, bool))),
    "merge": ("true or false", lambda value: isinstance(value, bool)),
    "kmeans": ("16 digits 0-9a-f, or null", _or_none(_is_fingerprint)),
}
