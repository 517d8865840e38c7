"""What labels are called in text and binaries: a unit each or, where there are more labels than
units, several units, ``12+47``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from fairseq.data import Dictionary

JOIN = "+"


def encode(line: str, symbols: Mapping[str, int], where: str, dictionary: str | Path) -> list[int]:
    """The symbols of ``line`` as numbers. Raises ``UserError``, beginning with ``where``, for one
    that the dict lacks.
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
    """Names for ``count`` labels: the units in their order, then sets of two units and more, those
    that stand closest to each other first. Fewer where there are not so many sets.
    """
    names: list[str] = []
    for size in range(1, len(units) + 1):
        if len(names) >= count:
            break
        sets = sorted(itertools.combinations(range(len(units)), size), key=lambda s: s[-1] - s[0])
        names += [JOIN.join(units[i] for i in chosen) for chosen in sets]
    return names[:count]


def with_joint_names(dictionary: Dictionary, names: Iterable[str]) -> Dictionary:
    """``dictionary``, and behind its symbols those ``names`` that join several units.

    Raises ``UserError`` for a name with a unit that ``dictionary`` lacks.
    """
    joint = [name for name in names if JOIN in name]
    extended = copy.deepcopy(dictionary) if joint else dictionary
    for name in joint:
        encode(name.replace(JOIN, " "), dictionary.indices, f"label {name}", "the LM's dict.txt")
        extended.add_symbol(name)
    return extended
