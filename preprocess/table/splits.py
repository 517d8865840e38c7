"""How the lines of a table are divided into train, valid and test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.preprocessor import Utterance


class Line(NamedTuple):
    """A recording. ``split`` and ``speaker`` are None where the table has no such column. ``group``
    is what ``share_out`` shares out.
    """

    utterance: Utterance
    split: str | None
    speaker: str | None
    group: tuple[str, ...] = ()


def share_out(
    lines: Sequence[Line], rows: Mapping[str, float], seed: int | None
) -> tuple[list[str | None], str]:
    """The split of each line, None of those left out, and how it was chosen. Lines without a split
    are shared out group by group: so many of each (below 1: such a share) to the splits of
    ``rows``, in its order, and what is over to the first of train, valid, test that is not there.
    Without ``seed`` they are taken in their order.

    Raises ``UserError`` for an unknown split or a number below 0.
    """
    if not rows or not set(rows) <= set(SPLITS) or not all(0 < n < 1e9 for n in rows.values()):
        raise UserError(
            f"datarc.rows={rows}: expected numbers above 0 for train, valid or test, by which rows "
            "without a split are shared out"
        )
    rest = next((split for split in SPLITS if split not in rows), None)
    splits = [line.split for line in lines]
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, line in enumerate(lines):
        if line.split is None:
            groups.setdefault(line.group, []).append(number)
    rng = random.Random(seed)
    for numbers in groups.values():
        if seed is not None:
            rng.shuffle(numbers)
        wanted = [
            split
            for split, count in rows.items()
            for _ in range(round(count * len(numbers)) if count < 1 else int(count))
        ]
        for position, number in enumerate(numbers):
            splits[number] = wanted[position] if position < len(wanted) else rest
    open_lines = sum(map(len, groups.values()))
    shares = ", ".join(f"{split} {count:g}" for split, count in rows.items())
    how = "" if open_lines == len(lines) else "as given, "
    how += f"{open_lines} rows shared out in {len(groups)} groups ({shares} of each)"
    return splits, how + (f", {splits.count(None)} left out" if None in splits else "")


def draw_splits(
    lines: Sequence[Line], valid: float, test: float, seed: int
) -> tuple[list[str], str]:
    """The split of each line, and how it was chosen: as the table says; else speakers are drawn,
    where it has them, or recordings, where one has several lines. Else each class is divided, so
    that every split has its share, and train one line at least. With several labels a line, or
    classes too small to be divided, the whole is, so that train keeps every label. A text is one
    class.

    Raises ``UserError`` for fewer than three speakers or recordings.
    """
    if all(line.split is not None for line in lines):
        return [line.split for line in lines], "as given"
    rng = random.Random(seed)
    what, groups = "speaker", [line.speaker for line in lines]
    if None in groups:
        what, groups = "recording", [line.utterance.path for line in lines]
    members = sorted(set(groups))
    if what == "speaker" or len(members) < len(lines):
        if len(members) < len(SPLITS):
            raise UserError(
                f"{len(members)} {what}s, too few to draw train, valid and test from; name each "
                "line's split in a column (datarc.split); datarc.speaker= ignores speakers"
            )
        split_of = dict(zip(members, _draw(len(members), valid, test, rng)))
        counts = Counter(split_of.values())
        listed = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        return [split_of[group] for group in groups], f"drawn by {what} ({listed})"
    answers = [line.utterance.labels for line in lines]
    classes: dict[Hashable, list[int]] = {}
    for number, answer in enumerate(answers):
        classes.setdefault("" if isinstance(answer, str) else answer, []).append(number)
    splits = [""] * len(lines)
    for numbers in classes.values():
        for number, split in zip(numbers, _draw(len(numbers), valid, test, rng)):
            splits[number] = split
    are_rare = any(
        splits.count(split) + 1 < share * len(lines) / 2
        for split, share in (("valid", valid), ("test", test))
    )
    if are_rare or any(len(answer) > 1 for answer in classes):
        return _draw_by_label(answers, valid, test, rng), "drawn so that train has every label"
    return splits, "drawn" if "" in classes else "drawn by class"


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
    answers: Sequence[Sequence[str]], valid: float, test: float, rng: random.Random
) -> list[str]:
    """A split for each of ``answers``. Test and valid get their shares of all: first answers of
    whose labels no share is full, then any; never the last in train with a label.
    """
    splits = ["train"] * len(answers)
    labels = [tuple(enumerate(answer)) for answer in answers]
    total = Counter(label for line in labels for label in line)
    in_train = total.copy()
    order = rng.sample(range(len(labels)), len(labels))
    for split, share in (("test", test), ("valid", valid)):
        taken: Counter[tuple[int, str]] = Counter()
        missing = max(1, round(share * len(labels)))
        for most in (share, 1.0):
            for number in order:
                line = labels[number]
                is_full = any(taken[label] >= most * total[label] for label in line)
                is_last = any(in_train[label] < 2 for label in line)
                if missing and splits[number] == "train" and not (is_full or is_last):
                    splits[number] = split
                    taken.update(line)
                    in_train.subtract(line)
                    missing -= 1
    return splits
