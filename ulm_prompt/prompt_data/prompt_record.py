"""prompt.json: what a trained prompt is, what it belongs to and how good it is.

train.py begins the record beside its checkpoints; export.py completes it beside the tensors to
share. A shared file may come from a stranger, so every value is checked and none becomes a path.
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

FORMAT = 2  # 1: an export by an earlier version; without a number: a run's card by one
RECORD, TENSORS, README = "prompt.json", "prompt.safetensors", "README.md"
BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_NAMES = ("task", "unit_model", "verbalizer")  # they become parts of paths
_REMEDY = "take the file from its source again, or train with a new --date"
# what must be the same for a run to resume, beside its data and its knobs
_FIXED = (
    "task", "unit_model", "prefix_prompt_length", "infix_prompt_length", "fine_tune",
    "lm_fingerprint", "dict_fingerprint", "verbalizer", "verbal",
)  # fmt: skip
EXTENSIBLE = ("max_epoch", "patience")  # knobs with which a run may last longer
# what the records of earlier versions lack, and what these did
_LATER = {"shots": 0, "verbalizer": "fixed", "unit_noise": 0.0, "skip_long": False}


@dataclass(frozen=True)
class UnitSettings:
    """How audio became the units that a prompt was trained on."""

    feature_type: str
    layer: int | None
    normalize: bool | None
    merge: bool
    kmeans: str | None  # fingerprint of the centres; None: units that were made elsewhere
    dtype: str = "float32"  # of the speech model's matrix products


@dataclass(frozen=True)
class TrainingRun:
    """What a run needs to resume, and how far it came."""

    data: dict[str, str]  # split -> SHA-256 of the text that the data-bin was made from
    updates: int = 0  # at the best checkpoint
    total_updates: int = 0
    rounding: float = 0.0  # see prompt.rounding
    lm: dict[str, str] = field(default_factory=dict)  # the LM's files -> SHA-256


@dataclass(frozen=True)
class PromptRecord:
    """A trained prompt. A run's record has ``run``; a shared one has what follows it."""

    task: str
    unit_model: str
    prefix_prompt_length: int
    verbalizer: str
    verbal: dict[str, str]  # label -> unit
    lm_fingerprint: str  # "": not known before the LM is loaded (a published checkpoint)
    lm_parameters: int = 0
    infix_prompt_length: int = 0  # vectors where <s> is, in place of a prefix
    fine_tune: bool = False  # the whole LM was trained, and there is no prompt
    labels: dict[str, dict[str, str]] = field(default_factory=dict)  # label -> its slot and name
    labels_per_utterance: int = 0  # 0: texts
    recipe: str | None = None
    training: dict[str, Any] = field(default_factory=dict)  # the recipe's knobs
    trained_parameters: int = 0  # 0: training has not finished
    valid: dict[str, float] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    run: TrainingRun | None = None
    units: UnitSettings | None = None
    dict_fingerprint: str = ""
    most_labels: int = 0  # of an utterance of train
    label_sequences: list[list[str]] | None = None  # train's; None: not known, or too many
    test: dict[str, float] = field(default_factory=dict)
    license: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # beside it -> SHA-256; in training: none

    @property
    def is_text(self) -> bool:
        """Whether an answer has any number of labels."""
        return self.labels_per_utterance == 0


def is_export(folder: Path) -> bool:
    """Whether ``folder`` holds a shared prompt."""
    return (folder / TENSORS).is_file()


def write_record(folder: Path, record: PromptRecord) -> None:
    """Write prompt.json. Raises ``UserError`` where it would not be read back."""
    _check(record, folder / RECORD)
    values = {"format": FORMAT, **dataclasses.asdict(record)}
    write_json(folder / RECORD, values, indent=1)


def read_record(folder: Path) -> PromptRecord | None:
    """Read and check the folder's prompt.json; None where there is none (a published checkpoint).

    Raises ``UserError``, one line, for a shared prompt without a record, and for a record that
    neither train.py nor export.py would write.
    """
    path, is_shared = folder / RECORD, is_export(folder)
    if not path.exists() and not is_shared:
        return None
    values = read_json(path, f"ulm_prompt/{'export' if is_shared else 'train'}.py")
    version = values.pop("format", None)
    if version not in (None, 1, FORMAT):
        raise UserError(f"{path}: format {_shown(version)}; this version reads up to {FORMAT}")
    if version is None:  # a card held the facts of its run beside the others
        names = [entry.name for entry in fields(TrainingRun)]
        values["run"] = {name: values.pop(name) for name in names if name in values}
    record = _typed(PromptRecord, values, "", path)
    if is_shared and record.units is None:
        raise UserError(f"{path}: the record of a run, not of a shared prompt; {_REMEDY}")
    _check(record, path)
    return record


def differences(earlier: PromptRecord, record: PromptRecord) -> list[str]:
    """In what a run of ``record`` differs from the earlier one, so that it cannot resume it."""
    changed = [name for name in _FIXED if getattr(earlier, name) != getattr(record, name)]
    if "dict_fingerprint" in changed and not earlier.dict_fingerprint:  # an earlier version's
        changed.remove("dict_fingerprint")
    if earlier.run is None or earlier.run.data != record.run.data:
        changed.append("data")
    return changed + [
        name
        for name, value in record.training.items()
        if name not in EXTENSIBLE and earlier.training.get(name, _LATER.get(name)) != value
    ]


def check_file(path: Path, record: PromptRecord) -> None:
    """Raises ``UserError`` when ``path`` is another file than the record beside it was written for.
    One that the record does not name may be anything.
    """
    if record.files.get(path.name, digest := sha256(path)) != digest:
        raise UserError(
            f"{path}: not the file that {RECORD} beside it was written for (another SHA-256); "
            f"{_REMEDY}"
        )


def has_ended(folder: Path, record: PromptRecord) -> bool:
    """Whether the run ended with the checkpoints in ``folder``. Raises ``UserError`` for others."""
    for name in record.files:
        if (folder / name).exists():
            check_file(folder / name, record)
    return BEST in record.files and (folder / BEST).exists()


def ended(folder: Path, card: PromptRecord, lm: dict[str, str]) -> PromptRecord | None:
    """The record of the run that ``card`` plans, when it has ended on the LM whose files have the
    hashes ``lm``. Raises ``UserError`` as ``has_ended``.
    """
    record = read_record(folder)
    if record is None or record.run is None or not has_ended(folder, record):
        return None
    names = ("lm_fingerprint", "dict_fingerprint")  # the card has none before the LM is loaded
    card = dataclasses.replace(card, **{name: getattr(record, name) for name in names})
    lasts_as_long = all(record.training.get(knob) == card.training[knob] for knob in EXTENSIBLE)
    is_same = lasts_as_long and record.run.lm == lm and not differences(record, card)
    return record if is_same else None


def _typed(kind: Any, value: Any, name: str, path: Path) -> Any:
    """The JSON value ``name`` as the type that a field declares. Raises ``UserError``."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):  # a type, or None
        return None if value is None else _typed(inner[0], value, name, path)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        typed = {key: _typed(hints.get(key, Any), value[key], key, path) for key in value}
        try:
            return kind(**typed)
        except TypeError as error:  # a name too many, or too few
            reason = str(error).partition("() ")[2]
            raise UserError(f"{path}: {name or 'the record'} {reason}; {_REMEDY}") from None
    fits = isinstance(value, (int, float) if kind is float else outer)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise _wrong(path, name, outer.__name__, value)
    if outer is dict:
        return {key: _typed(inner[1], item, name, path) for key, item in value.items()}
    return [_typed(inner[0], item, name, path) for item in value] if outer is list else value


def _check(record: PromptRecord, path: Path) -> None:
    """Raises ``UserError`` for values that do not go together, or that cannot be shown."""
    labels, units, sequences = record.labels, record.verbal, record.label_sequences
    name = "a name of letters, digits, and _ . -"
    rules: list[tuple[str, object, str]] = [
        *((key, _NAME.fullmatch(getattr(record, key)), name) for key in _NAMES),
        ("files", record.files.keys() <= {BEST, LAST, TENSORS}, f"{BEST}, {LAST} or {TENSORS}"),
    ]
    if record.units is not None:  # export.py has completed it
        texts = [*units.values(), *(text for entry in labels.values() for text in entry.values())]
        are_named = labels and all(entry.keys() == {"slot", "name"} for entry in labels.values())
        are_shown = all(text and text.isprintable() for text in texts)
        have_units = units.keys() == labels.keys() and len(set(units.values())) == len(units)
        are_known = sequences != [] and all(
            0 < len(sequence) <= record.most_labels and set(sequence) <= labels.keys()
            for sequence in sequences or ()
        )
        rules += [
            ("labels", are_named and are_shown, "a slot and a name for each, on one line"),
            ("verbal", have_units, "a unit for each of labels"),
            ("label_sequences", are_known, "1 to most_labels of labels"),
            ("license", (record.license or "").isprintable(), "one line"),
        ]
    for key, is_right, expected in rules:
        if not is_right:
            raise _wrong(path, key, expected, getattr(record, key))


def _wrong(path: Path, name: str, expected: str, value: Any) -> UserError:
    return UserError(f"{path}: {name}: expected {expected}, found {_shown(value)}; {_REMEDY}")


def _shown(value: Any) -> str:
    """A value of the file on one short line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
