"""The names of labels. People read a slot and a name. Prompt text and binaries contain a unit, or
several units, ``12+47``, if there are more labels than units.
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
    """A label: its ``slot``, for example action or character, and its ``name`` in this slot."""

    slot: str
    name: str


def named_labels(workspace: Workspace, pair: Pair, numbers: Iterable[str]) -> dict[str, Label]:
    """Return label number -> label, from labels.json. Rows that were made elsewhere may have no
    labels.json: then the number is the name. Raises ``UserError`` if a label is missing.
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
        remedy = "run preprocess/runner.py --action postprocess and ulm_prompt/verbalizer.py again"
        raise UserError(f"{path}: label {error} is missing; {remedy}") from None


def encode(line: str, symbols: Mapping[str, int], where: str, dictionary: str | Path) -> list[int]:
    """Return the numbers of the symbols in ``line``. Raises ``UserError`` for an unknown symbol.
    The message contains ``where`` (the place of the line) and ``dictionary`` (a path).
    """
    words = line.split()
    try:
        return [symbols[word] for word in words]
    except KeyError:
        unknown = min(word for word in words if word not in symbols)
        remedy = "use units and an LM of the same unit model"
        raise UserError(f"{where}: unit {unknown} is not in {dictionary}; {remedy}") from None


def text_of(labels: Iterable[str]) -> str:
    """Join labels into a text. Labels longer than a character, such as slots, get brackets."""
    return "".join(label if len(label) == 1 else f"[{label}]" for label in labels)


def unit_names(units: Sequence[str], count: int) -> list[str]:
    """Return up to ``count`` label names: first single units in their order, then sets of two and
    more units. Among sets of one size, units with close positions in ``units`` come first.
    """
    names: list[str] = []
    for size in range(1, len(units) + 1):
        if len(names) >= count:
            break
        sets = sorted(itertools.combinations(range(len(units)), size), key=lambda s: s[-1] - s[0])
        names += [JOIN.join(units[i] for i in chosen) for chosen in sets]
    return names[:count]


def with_joint_names(dictionary: Dictionary, names: Iterable[str]) -> Dictionary:
    """Return ``dictionary`` with the ``names`` that join several units appended to its symbols.
    Raises ``UserError`` if a joint name contains a unit that is not in ``dictionary``.
    """
    joint = [name for name in names if JOIN in name]
    extended = copy.deepcopy(dictionary) if joint else dictionary
    for name in joint:
        encode(name.replace(JOIN, " "), dictionary.indices, f"label {name}", "the LM's dict.txt")
        extended.add_symbol(name)
    return extended
