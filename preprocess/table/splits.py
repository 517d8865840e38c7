"""How the lines of a table are divided into train, valid and test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.preprocessor import Utterance


class Line(NamedTuple):
    """A recording. ``split`` and ``speaker`` are None where the table has no such column."""

    utterance: Utterance
    split: str | None
    speaker: str | None


def draw_splits(
    lines: Sequence[Line], valid: float, test: float, seed: int
) -> tuple[list[str], str]:
    """The split of each line, and how it came about: the table's own. Else speakers are drawn,
    where it has them, or recordings, where one has several lines. Else each class is divided, so
    that every split has its share, and train one line at least; with several labels a line, the
    whole is, so that train keeps every label. A text is one class.

    Raises ``UserError`` for fewer than three speakers or recordings.
    """
    if all(line.split is not None for line in lines):
        return [line.split for line in lines], "as given"
    rng = random.Random(seed)
    paths = [line.utterance.path for line in lines]
    for what, groups in (("speaker", [line.speaker for line in lines]), ("recording", paths)):
        if None not in groups and (what == "speaker" or len(set(groups)) < len(groups)):
            members = sorted(set(groups))
            if len(members) < len(SPLITS):
                raise UserError(
                    f"{len(members)} {what}s, too few to draw train, valid and test from: name the "
                    "splits in a column 'split', or set datarc.speaker= to draw without regard to "
                    "speakers"
                )
            split_of = dict(zip(members, _draw(len(members), valid, test, rng)))
            counts = Counter(split_of.values())
            listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
            return [split_of[group] for group in groups], f"drawn by {what} ({listed})"
    answers = [line.utterance.labels for line in lines]
    labels = [() if isinstance(answer, str) else tuple(enumerate(answer)) for answer in answers]
    if max(map(len, labels), default=0) > 1:
        return _draw_by_label(labels, valid, test, rng), "drawn so that train has every label"
    classes: dict[Hashable, list[int]] = {}
    for number, label in enumerate(labels):
        classes.setdefault(label, []).append(number)
    splits = [""] * len(lines)
    for members in classes.values():
        for number, split in zip(members, _draw(len(members), valid, test, rng)):
            splits[number] = split
    return splits, "drawn by class" if any(labels) else "drawn"


def _draw(count: int, valid: float, test: float, rng: random.Random) -> list[str]:
    """``count`` splits in random order: at least one train, then test and valid by their shares,
    one each where there are three or more.
    """
    least = 1 if count >= 3 else 0
    in_test = min(max(least, round(test * count)), count - 1)
    in_valid = min(max(least, round(valid * count)), count - 1 - in_test)
    splits = ["test"] * in_test + ["valid"] * in_valid + ["train"] * (count - in_test - in_valid)
    rng.shuffle(splits)
    return splits


def _draw_by_label(
    labels: Sequence[Sequence[Hashable]], valid: float, test: float, rng: random.Random
) -> list[str]:
    """A split for each line of ``labels``. Test and valid get their shares of all lines: first
    lines of whose labels no share is full, then any; never the last in train with a label.
    """
    splits = ["train"] * len(labels)
    counts = Counter(label for line in labels for label in line)
    in_train = counts.copy()
    order = rng.sample(range(len(labels)), len(labels))
    for split, share in (("test", test), ("valid", valid)):
        taken: Counter[Hashable] = Counter()
        missing = max(1, round(share * len(labels)))
        for is_strict in (True, False):
            for number in order:
                line = labels[number]
                full = is_strict and any(taken[label] >= share * counts[label] for label in line)
                needed = any(in_train[label] < 2 for label in line)
                if missing and splits[number] == "train" and not full and not needed:
                    splits[number] = split
                    taken.update(line)
                    in_train.subtract(line)
                    missing -= 1
    return splits
