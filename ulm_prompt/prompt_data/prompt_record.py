"""prompt.json: the record of a trained prompt, of its unit model and LM, and of its scores.

train.py writes the record next to its checkpoints. export.py completes it next to the tensors to
share. A shared file may come from a stranger, so every value is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import UserError
from pipeline.files import read_json, sha256, write_json

FORMAT = 2  # earlier versions: 1 in exports, no number in the records of runs
RECORD, TENSORS, README = "prompt.json", "prompt.safetensors", "README.md"
BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_NAMES = ("task", "unit_model", "verbalizer")  # these become parts of paths
_REMEDY = "get the file from its source again, or train with a new --date"
# a run resumes only if these fields, its data and its knobs are unchanged
_FIXED = (
    "task", "unit_model", "prefix_prompt_length", "infix_prompt_length", "fine_tune",
    "lm_fingerprint", "dict_fingerprint", "verbalizer", "verbal",
)  # fmt: skip
EXTENSIBLE = ("max_epoch", "patience")  # knobs that may change, so that a run lasts longer
# knobs that old records do not contain, and the values that old versions used
_UNRECORDED = {"shots": 0, "verbalizer": "fixed", "unit_noise": 0.0, "skip_long": False}


@dataclass(frozen=True)
class UnitSettings:
    """How audio became the units that a prompt was trained on."""

    feature_type: str
    layer: int | None
    normalize: bool | None
    merge: bool
    kmeans: str | None  # fingerprint of the centres; None: the units were made elsewhere
    dtype: str = "float32"  # of matrix products in the speech model


@dataclass(frozen=True)
class TrainingRun:
    """What a run needs to resume, and how many updates it has done."""

    data: dict[str, str]  # split -> SHA-256 of the text that the binaries were made from
    updates: int = 0  # at the best checkpoint
    total_updates: int = 0
    rounding: float = 0.0  # largest relative error of the saved prompt; no code reads it
    lm: dict[str, str] = field(default_factory=dict)  # file of the LM -> SHA-256


@dataclass(frozen=True)
class PromptRecord:
    """A trained prompt. Only the record of a run has ``run``; only a shared one has ``units``."""

    task: str
    unit_model: str
    prefix_prompt_length: int
    verbalizer: str  # the method that made ``verbal``: freq, kmeans or random
    verbal: dict[str, str]  # label -> unit
    lm_fingerprint: str  # "": unknown until the LM is loaded
    lm_parameters: int = 0
    infix_prompt_length: int = 0  # vectors that only <s> and later tokens see, instead of a prefix
    fine_tune: bool = False  # the whole LM was trained, without a prompt
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # label -> slot and name
    labels_per_utterance: int = 0  # 0: any number, a text
    recipe: str | None = None
    training: dict[str, Any] = field(default_factory=dict)  # the recipe's knobs
    trained_parameters: int = 0  # 0: training has not finished
    valid: dict[str, float] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    run: TrainingRun | None = None
    units: UnitSettings | None = None
    dict_fingerprint: str = ""
    most_labels: int = 0  # the most labels of any train utterance
    label_sequences: list[list[str]] | None = None  # of train; None: unknown, or too many
    test: dict[str, float] = field(default_factory=dict)
    license: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # file -> SHA-256; empty during training

    @property
    def is_text(self) -> bool:
        """Whether an answer may have any number of labels."""
        return self.labels_per_utterance == 0


def is_export(folder: Path) -> bool:
    """Return whether ``folder`` contains a shared prompt."""
    return (folder / TENSORS).is_file()


def write_record(folder: Path, record: PromptRecord) -> None:
    """Write prompt.json. Raises ``UserError`` if ``read_record`` would refuse it."""
    _check(record, folder / RECORD)
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    write_json(folder / RECORD, values, indent=1)


def read_record(folder: Path) -> PromptRecord | None:
    """Read and check prompt.json. Returns None if it is missing, as with a published checkpoint.

    Raises ``UserError`` if a shared prompt has no record, and for a record that neither train.py
    nor export.py would write.
    """
    path, is_shared = folder / RECORD, is_export(folder)
    if not path.exists() and not is_shared:
        return None
    values = read_json(path, f"ulm_prompt/{'export' if is_shared else 'train'}.py")
    version = values.pop("format", None)
    if version not in (None, 1, FORMAT):
        problem = f"format {_short(version)}; this version reads up to {FORMAT}"
        raise UserError(f"{path}: {problem}; update this repository")
    if version is None:  # old records have the fields of ``run`` at the top
        names = [entry.name for entry in fields(TrainingRun)]
        values["run"] = {name: values.pop(name) for name in names if name in values}
    record = _typed(PromptRecord, values, "", path)
    if is_shared and record.units is None:
        raise UserError(f"{path}: expected a shared prompt's record, found a run's; {_REMEDY}")
    _check(record, path)
    return record


def differences(earlier: PromptRecord, record: PromptRecord) -> list[str]:
    """Return the names of the settings that keep ``record``'s run from resuming ``earlier``."""
    changed = [name for name in _FIXED if getattr(earlier, name) != getattr(record, name)]
    if "dict_fingerprint" in changed and not earlier.dict_fingerprint:  # an old record
        changed.remove("dict_fingerprint")
    if earlier.run is None or earlier.run.data != record.run.data:
        changed.append("data")
    return changed + [
        name
        for name, value in record.training.items()
        if name not in EXTENSIBLE and earlier.training.get(name, _UNRECORDED.get(name)) != value
    ]


def check_file(path: Path, record: PromptRecord) -> None:
    """Raise ``UserError`` if ``path`` does not have the SHA-256 that ``record`` has for this name.
    A file that the record does not name is not checked.
    """
    if record.files.get(path.name, digest := sha256(path)) != digest:
        raise UserError(
            f"{path}: not the file that {RECORD} beside it was written for (another SHA-256); "
            f"{_REMEDY}"
        )


def check_files(folder: Path, record: PromptRecord) -> None:
    """Raise ``UserError`` if a file that ``record`` names was replaced. It may be missing."""
    for name in record.files:
        if (folder / name).exists():
            check_file(folder / name, record)


def finished_record(
    folder: Path, planned: PromptRecord, lm_hashes: dict[str, str]
) -> PromptRecord | None:
    """Return the complete record in ``folder`` if the run that ``planned`` describes has finished
    on the LM with ``lm_hashes``, else None. Raises ``UserError`` as ``check_files``.
    """
    record = read_record(folder)
    if record is None or record.run is None:
        return None
    check_files(folder, record)
    names = ("lm_fingerprint", "dict_fingerprint")  # unknown to the plan: no LM is loaded yet
    planned = dataclasses.replace(planned, **{name: getattr(record, name) for name in names})
    has_ended = BEST in record.files and (folder / BEST).exists()
    lasts_as_long = all(record.training.get(knob) == planned.training[knob] for knob in EXTENSIBLE)
    is_same = lasts_as_long and record.run.lm == lm_hashes and not differences(record, planned)
    return record if has_ended and is_same else None


def _typed(kind: Any, value: Any, name: str, path: Path) -> Any:
    """Convert the JSON value of field ``name`` to type ``kind``. Raises ``UserError``."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):  # a type or None
        return None if value is None else _typed(inner[0], value, name, path)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        typed = {key: _typed(hints.get(key, Any), value[key], key, path) for key in value}
        try:
            return kind(**typed)
        except TypeError as error:  # an unknown or a missing name
            reason = str(error).partition("() ")[2]
            raise UserError(f"{path}: {name or 'the record'} {reason}; {_REMEDY}") from None
    fits = isinstance(value, (int, float) if kind is float else outer)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise _wrong_value(path, name, outer.__name__, value)
    if outer is dict:
        return {key: _typed(inner[1], item, name, path) for key, item in value.items()}
    return [_typed(inner[0], item, name, path) for item in value] if outer is list else value


def _check(record: PromptRecord, path: Path) -> None:
    """Raise ``UserError`` for values that contradict each other or that cannot be printed."""
    labels, units, sequences = record.labels, record.verbal, record.label_sequences
    name_rule = "a name of letters, digits, and _ . -"
    are_named = all(entry.keys() == {"slot", "name"} for entry in labels.values())
    rules: list[tuple[str, object, str]] = [
        *((key, _NAME.fullmatch(getattr(record, key)), name_rule) for key in _NAMES),
        ("labels", are_named, "a slot and name for every label"),
        ("files", record.files.keys() <= {BEST, LAST, TENSORS}, f"{BEST}, {LAST} or {TENSORS}"),
    ]
    if record.units is not None:  # a shared prompt's record
        texts = [*units.values(), *(text for entry in labels.values() for text in entry.values())]
        are_printable = labels and all(text and text.isprintable() for text in texts)
        have_units = units.keys() == labels.keys() and len(set(units.values())) == len(units)
        are_known = sequences != [] and all(
            0 < len(sequence) <= record.most_labels and set(sequence) <= labels.keys()
            for sequence in sequences or ()
        )
        rules += [
            ("labels", are_printable, "a printable slot and name for every label"),
            ("verbal", have_units, "a different unit for every label"),
            ("label_sequences", are_known, "sequences of 1 to most_labels known labels"),
            ("license", (record.license or "").isprintable(), "one line"),
        ]
    for key, is_right, expected in rules:
        if not is_right:
            raise _wrong_value(path, key, expected, getattr(record, key))


def _wrong_value(path: Path, name: str, expected: str, value: Any) -> UserError:
    return UserError(f"{path}: {name}: expected {expected}, found {_short(value)}; {_REMEDY}")


def _short(value: Any) -> str:
    """Return ``value`` as JSON on one line, cut after 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
