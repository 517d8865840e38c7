"""What labels are called: by people; and in text and binaries, where a label is a unit or, where
there are more labels than units, several units, ``12+47``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.workspace import Workspace
from ulm_prompt.prompt_data.tasks import Pair

if TYPE_CHECKING:
    from fairseq.data import Dictionary

JOIN = "+"


class Label(NamedTuple):
    """A label: the ``slot`` that it fills (action, character), ``name``: what it says."""

    slot: str
    name: str


def named_labels(workspace: Workspace, pair: Pair, numbers: Iterable[str]) -> dict[str, Label]:
    """Label number -> label, by labels.json. Without it, labels of rows that were not made here are
    called by their numbers. Raises ``UserError`` where it lacks one.
    """
    folder = workspace.downstream_data(pair.config.downstream) / pair.unit_model
    path = folder / "labels.json"
    if not path.exists() and not (folder / "config.yaml").exists():
        return {number: Label("label", number) for number in numbers}
    names = read_json(path, "preprocess/runner.py --action postprocess")
    try:
        labels = {number: names[number] for number in numbers}
        return {n: Label(str(label["slot"]), str(label["name"])) for n, label in labels.items()}
    except (KeyError, TypeError) as error:
        again = "run preprocess/runner.py --action postprocess and ulm_prompt/verbalizer.py again"
        raise UserError(f"{path}: nothing about label {error}; {again}") from None


def encode(line: str, symbols: Mapping[str, int], where: str, dictionary: str | Path) -> list[int]:
    """The symbols of ``line``, which is at ``where``, as numbers. Raises ``UserError`` for one that
    the dict lacks.
    """
    words = line.split()
    try:
        return [symbols[word] for word in words]
    except KeyError:
        unknown = min(word for word in words if word not in symbols)
        remedy = "take units and LM of one unit model"
        raise UserError(f"{where}: unit {unknown} is not in {dictionary}; {remedy}") from None


def text_of(labels: Iterable[str]) -> str:
    """Labels as a text: characters joined, slots' labels in brackets."""
    return "".join(label if len(label) == 1 else f"[{label}]" for label in labels)


def unit_names(units: Sequence[str], count: int) -> list[str]:
    """At most ``count`` names of labels: the units in their order, then sets of two units and more,
    those that stand closest to each other first.
    """
    names: list[str] = []
    for size in range(1, len(units) + 1):
        if len(names) >= count:
            break
        sets = sorted(itertools.combinations(range(len(units)), size), key=lambda s: s[-1] - s[0])
        names += [JOIN.join(units[i] for i in chosen) for chosen in sets]
    return names[:count]


def with_joint_names(dictionary: Dictionary, names: Iterable[str]) -> Dictionary:
    """``dictionary``, and behind its symbols those ``names`` that join several units. Raises
    ``UserError`` for a name with a unit that ``dictionary`` lacks.
    """
    joint = [name for name in names if JOIN in name]
    extended = copy.deepcopy(dictionary) if joint else dictionary
    for name in joint:
        encode(name.replace(JOIN, " "), dictionary.indices, f"label {name}", "the LM's dict.txt")
        extended.add_symbol(name)
    return extended
