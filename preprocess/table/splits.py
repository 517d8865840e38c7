"""Splits for a table that has none."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from preprocess.table.columns import TableData
from preprocess.table.reading import Line


def draw_splits(lines: Sequence[Line], shares: TableData, seed: int) -> list[str]:
    """The split of each line: the table's own; else drawn by speaker, where it has speakers; else
    by class, so that each class has its share in every split, and one in train at least.
    """
    if all(line.split is not None for line in lines):
        return [line.split for line in lines]
    rng = random.Random(seed)
    if all(line.speaker is not None for line in lines):
        speakers = sorted({line.speaker for line in lines})
        by_speaker = dict(zip(speakers, _draw(len(speakers), shares, rng)))
        return [by_speaker[line.speaker] for line in lines]
    texts = bool(shares.text)
    classes: dict[Hashable, list[int]] = {}
    for number, line in enumerate(lines):
        classes.setdefault("" if texts else line.utterance.labels, []).append(number)
    found = [""] * len(lines)
    for members in classes.values():
        for number, split in zip(members, _draw(len(members), shares, rng)):
            found[number] = split
    return found


def _draw(count: int, shares: TableData, rng: random.Random) -> list[str]:
    """``count`` splits in random order: at least one train, then test and valid by their shares,
    one each where there are three or more.
    """
    least = 1 if count >= 3 else 0
    test = max(least, round(shares.test * count))
    valid = max(least, round(shares.valid * count))
    test = min(test, count - 1)
    valid = min(valid, count - 1 - test)
    splits = ["test"] * test + ["valid"] * valid + ["train"] * (count - test - valid)
    rng.shuffle(splits)
    return splits
