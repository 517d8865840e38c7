"""Few-shot training: so many distinct rows of each class, drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Row = tuple[tuple[int, ...], tuple[int, ...]]


def draw_shots(rows: Iterable[Row], shots: int, seed: int) -> np.ndarray:
    """Places of at most ``shots`` distinct rows, (units, labels) each, of every label sequence, in
    the order of ``rows``.

    A row that comes several times (KS's train split is balanced by drawing with replacement) counts
    once, at its first place; a class with fewer distinct rows gives all. The draw does not depend
    on how labels are named, and fewer shots are a part of more.
    """
    classes: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for place, (units, labels) in enumerate(rows):
        classes.setdefault(labels, {}).setdefault(units, place)
    drawn = []
    for number, distinct in enumerate(classes.values()):
        places = np.array(list(distinct.values()))
        order = np.random.default_rng((seed, number)).permutation(len(places))
        drawn.append(places[order[:shots]])
    return np.sort(np.concatenate(drawn))
