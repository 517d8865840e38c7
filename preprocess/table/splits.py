"""How the rows of a table are divided into train, valid and test."""

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
    """The split of each row, None of those left out, and how it was chosen.

    Rows without a ``given`` split are shared out, group by group: so many of each (below 1: such a
    share) to the splits of ``rows``, in its order, and what is over to the first of train, valid,
    test that is not there. Without ``seed`` they are taken in their order.
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
        wanted: list[str | None] = []
        for split, count in rows.items():
            wanted += [split] * (round(count * len(numbers)) if count < 1 else int(count))
        wanted += [rest] * len(numbers)
        for number, split in zip(numbers, wanted):
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
    """The split of each row, and how it was chosen: speakers are drawn, where rows have them, or
    recordings, where one has several rows. Else each class is divided, so that every split has its
    share; with several labels a row, or classes too small, the whole is, so that train keeps every
    label. A text is one class. Raises ``UserError`` for fewer than three to draw.
    """
    rng = random.Random(seed)
    what, groups = "speaker", list(speakers)
    if None in groups:
        what, groups = "recording", [utterance.path for utterance in utterances]
    members = sorted(set(groups))
    if what == "speaker" or len(members) < len(utterances):
        if len(members) < len(SPLITS):
            remedy = "name each line's split in a column (datarc.split); datarc.speaker= ignores"
            few = f"{len(members)} {what}s, too few to draw train, valid and test from"
            raise UserError(f"{few}; {remedy} speakers")
        drawn = _draw(len(members), valid, test, rng)
        split_of = dict(zip(members, drawn))
        listed = ", ".join(f"{split} {drawn.count(split)}" for split in SPLITS)
        return [split_of[group] for group in groups], f"drawn by {what} ({listed})"
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
    """``count`` splits in random order: a train, then test and valid by shares, of 3 one each."""
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
