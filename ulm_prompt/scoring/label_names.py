"""What a task's label units say to people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from ulm_prompt.sample_file import read_samples
from ulm_prompt.tasks import Pair
from ulm_prompt.verbal import load_verbal

OTHER = "(other)"  # an answer that is no class of the test split


class Label(NamedTuple):
    """A label: ``kind`` is the slot that it fills (action, character), ``name`` what it says."""

    kind: str
    name: str


def label_names(workspace: Workspace, pair: Pair) -> dict[str, Label]:
    """Label unit -> label, by verbal.json and the downstream's labels.json.

    Raises ``UserError`` where the two files do not fit.
    """
    _, verbal = load_verbal(workspace, pair)
    named = named_labels(workspace, pair, verbal)
    return {unit: named[number] for number, unit in verbal.items()}


def names_in(path: Path, workspace: Workspace, pair: Pair) -> dict[str, Label]:
    """What stands in a sample file -> label: label units, or a baseline's label numbers."""
    if not is_baseline(path):
        return label_names(workspace, pair)
    rows = read_samples(path)
    numbers = {
        number for row in rows for key in ("label", "predict") for number in row[key].split()
    }
    return named_labels(workspace, pair, sorted(numbers))


def is_baseline(path: Path) -> bool:
    """Whether a sample file was written by one: it answers with label numbers, from no units."""
    return next(read_samples(path)).get("src") == ""


def described_labels(
    workspace: Workspace, pair: Pair, numbers: Iterable[str]
) -> dict[str, dict[str, str]]:
    """``named_labels`` as a prompt's card and record hold them."""
    named = named_labels(workspace, pair, numbers)
    return {number: {"slot": label.kind, "name": label.name} for number, label in named.items()}


def named_labels(workspace: Workspace, pair: Pair, numbers: Iterable[str]) -> dict[str, Label]:
    """Label number -> label, by labels.json. Rows that were not made here may have none: their
    labels are called by their numbers.

    Raises ``UserError`` where labels.json lacks one.
    """
    folder = workspace.downstream_data(pair.config.downstream) / pair.unit_model
    path = folder / "labels.json"
    if not path.exists() and not (folder / "config.yaml").exists():
        return {number: Label("label", number) for number in numbers}
    names = read_json(path, "preprocess/runner.py --action postprocess")
    try:
        return {
            number: Label(str(names[number]["slot"]), str(names[number]["name"]))
            for number in numbers
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: nothing about label {error}; run preprocess/runner.py --action postprocess "
            "and ulm_prompt/verbalizer.py again"
        ) from None
