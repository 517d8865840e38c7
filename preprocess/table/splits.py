"""Divide the rows of a table into train, valid and test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.preprocessor import Utterance


def share_out(
    given: Sequence[str | None],
    groups: Sequence[Hashable],
    rows: Mapping[str, float],
    seed: int | None,
) -> tuple[list[str | None], str]:
    """Return the split of each row (None: left out), and a text that says how it was chosen.

    Rows without a ``given`` split are shared out group by group. Each split in ``rows``, in order,
    gets that number of rows per group (below 1: that share). The other rows go to the first of
    train, valid, test that is not in ``rows``. ``seed`` None: rows are taken in order, not drawn.
    """
    if not rows or not set(rows) <= set(SPLITS) or not all(0 < n < 1e9 for n in rows.values()):
        what = "numbers above 0 for train, valid or test, to share out rows without a split"
        raise UserError(f"datarc.rows={rows}: expected {what}")
    rest = next((split for split in SPLITS if split not in rows), None)
    splits = list(given)
    members: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        if given[number] is None:
            members.setdefault(group, []).append(number)
    rng = random.Random(seed)
    for numbers in members.values():
        if seed is not None:
            rng.shuffle(numbers)
        shared: list[str | None] = []
        for split, count in rows.items():
            shared += [split] * (round(count * len(numbers)) if count < 1 else int(count))
        shared += [rest] * len(numbers)
        for number, split in zip(numbers, shared):
            splits[number] = split
    shares = ", ".join(f"{split} {count:g}" for split, count in rows.items())
    how = "" if given.count(None) == len(given) else "as given, "
    how += f"{given.count(None)} rows shared out in {len(members)} groups ({shares} of each)"
    return splits, how + (f", {splits.count(None)} left out" if None in splits else "")


def draw_splits(
    utterances: Sequence[Utterance],
    speakers: Sequence[str | None],
    valid: float,
    test: float,
    seed: int,
) -> tuple[list[str], str]:
    """Return the split of each row, and a text that says how it was chosen. Draws speakers if every
    row has a speaker, or recordings if a recording has several rows. Otherwise divides each class;
    all texts are one class. If rows have several labels, or classes are too small, divides all rows
    together: train has every label. Raises ``UserError`` for fewer than 3 speakers or recordings.
    """
    rng = random.Random(seed)
    kind, groups = "speaker", list(speakers)
    if None in groups:
        kind, groups = "recording", [utterance.path for utterance in utterances]
    members = sorted(set(groups))
    if kind == "speaker" or len(members) < len(utterances):
        if len(members) < len(SPLITS):
            few = f"{len(members)} {kind}s, too few to draw train, valid and test from"
            remedy = "write the splits in a column (datarc.split), or set datarc.speaker="
            raise UserError(f"{few}; {remedy} to ignore speakers")
        drawn = _draw(len(members), valid, test, rng)
        split_of = dict(zip(members, drawn))
        listed = ", ".join(f"{split} {drawn.count(split)}" for split in SPLITS)
        return [split_of[group] for group in groups], f"drawn by {kind} ({listed})"
    answers = [utterance.labels for utterance in utterances]
    classes: dict[Hashable, list[int]] = {}
    for number, answer in enumerate(answers):
        classes.setdefault("" if isinstance(answer, str) else answer, []).append(number)
    splits = [""] * len(answers)
    for numbers in classes.values():
        for number, split in zip(numbers, _draw(len(numbers), valid, test, rng)):
            splits[number] = split
    are_rare = any(
        splits.count(split) + 1 < share * len(answers) / 2
        for split, share in (("valid", valid), ("test", test))
    )
    if are_rare or any(len(answer) > 1 for answer in classes):
        return _draw_by_label(answers, valid, test, rng), "drawn so that train has every label"
    return splits, "drawn" if "" in classes else "drawn by class"


def _draw(count: int, valid: float, test: float, rng: random.Random) -> list[str]:
    """Return ``count`` splits in random order, by share; each at least once if ``count`` > 2."""
    least = 1 if count >= 3 else 0
    in_test = min(max(least, round(test * count)), count - 1)
    in_valid = min(max(least, round(valid * count)), count - 1 - in_test)
    splits = ["test"] * in_test + ["valid"] * in_valid + ["train"] * (count - in_test - in_valid)
    rng.shuffle(splits)
    return splits


def _draw_by_label(
    answers: Sequence[Sequence[str]], valid: float, test: float, rng: random.Random
) -> list[str]:
    """Return a split per answer. Test, then valid, get their shares of all answers: first answers
    with no label whose share is full, then any. The last answer with a label stays in train.
    """
    splits = ["train"] * len(answers)
    labels = [tuple(enumerate(answer)) for answer in answers]
    total = Counter(label for answer in labels for label in answer)
    in_train = total.copy()
    order = rng.sample(range(len(labels)), len(labels))
    for split, share in (("test", test), ("valid", valid)):
        taken: Counter[tuple[int, str]] = Counter()
        missing = max(1, round(share * len(labels)))
        for most in (share, 1.0):
            for number in order:
                answer = labels[number]
                is_full = any(taken[label] >= most * total[label] for label in answer)
                is_last = any(in_train[label] < 2 for label in answer)
                if missing and splits[number] == "train" and not (is_full or is_last):
                    splits[number] = split
                    taken.update(answer)
                    in_train.subtract(answer)
                    missing -= 1
    return splits
