"""Any task that a table describes: a line a recording, with its labels or its text."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.characters import left_out, normalised
from preprocess.actions.config import Config, DataConfig
from preprocess.actions.manifest import inside
from preprocess.preprocessor import Preprocessor, Utterance

# What a config says of a table: its file, its columns, the shares of its splits.


@dataclass
class TableData(DataConfig):
    table: str = MISSING
    path: str = MISSING
    labels: list[str] = field(default_factory=list)
    text: str | None = None
    split: str = MISSING
    speaker: str = MISSING
    valid: float = MISSING
    test: float = MISSING


# Reading a table of recordings.


class Line(NamedTuple):
    """A recording. ``split`` and ``speaker`` are None where the table has no such column."""

    utterance: Utterance
    split: str | None
    speaker: str | None


def read_table(path: Path, columns: TableData, spelled: Callable[[str], str]) -> list[Line]:
    """Read every line; ``spelled`` turns a text into the characters that are its labels.

    Raises ``UserError``, naming the line, for a missing column, an empty field, another split than
    ours, a path that leaves the corpus, or a recording that is listed twice.
    """
    wanted = [columns.path, *([columns.text] if columns.text else columns.labels)]
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            table = csv.DictReader(handle, delimiter=delimiter)
            found = [name for name in table.fieldnames or () if name]
            missing = [name for name in wanted if name not in found]
            if missing:
                raise UserError(
                    f"{path}: no column {missing[0]!r} in its first line, which has "
                    f"{', '.join(found) or 'nothing'}; name yours in datarc"
                )
            rows = [(table.line_num, row) for row in table]
    except FileNotFoundError:
        raise UserError(
            f"{path}: table not found; it lies under datarc.root_path, datarc.table names it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
    wanted += [name for name in (columns.split, columns.speaker) if name in found]
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        row = {name: (row.get(name) or "").strip() for name in wanted}
        for name, value in row.items():
            if not value:
                raise UserError(f"{where}: nothing in the column {name!r}")
        name = row[columns.path]
        inside(name, path.parent, where)
        if seen.setdefault(name, number) != number:
            raise UserError(f"{where}: {name} stands in line {seen[name]} already")
        labels = (
            spelled(row[columns.text])
            if columns.text
            else tuple(row[column] for column in columns.labels)
        )
        if not labels:
            raise UserError(f"{where}: no letter in the text {row[columns.text][:60]!r}")
        split = row.get(columns.split)
        if split is not None and split not in SPLITS:
            raise UserError(f"{where}: split {split!r}; expected {', '.join(SPLITS)}")
        lines.append(Line(Utterance(name, labels), split, row.get(columns.speaker)))
    return lines


# Splits for a table that has none.


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


@dataclass
class TableConfig(Config):
    datarc: TableData = field(default_factory=TableData)


class Table(Preprocessor[TableConfig]):
    """Labels are numbered through all columns in the order of their first appearance in train; of a
    text the labels are its characters, in the order of their codes.
    """

    config_class = TableConfig

    @property
    def slots(self) -> tuple[str, ...]:
        """The label columns."""
        datarc = self.config.datarc
        return ("character",) if datarc.text else tuple(datarc.labels)

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """The columns' values, or every character of the text."""
        if self.config.datarc.text:
            return ((0, character) for character in utterance.labels)
        return super().named_labels(utterance)

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        names = super().label_names(train)
        return [sorted(*names)] if self.config.datarc.text else names

    def utterances(self, split: str) -> list[Utterance]:
        """The table's lines of this split, in its order."""
        lines, dropped = self._lines()
        if split == SPLITS[0]:
            self._check_shares()
            if dropped:
                self.say(f"{self.config.datarc.table}: {left_out(dropped)}")
        chosen = draw_splits(lines, self.config.datarc, self.config.taskrc.seed)
        return [line.utterance for line, its in zip(lines, chosen) if its == split]

    def _check_shares(self) -> None:
        datarc = self.config.datarc
        if min(datarc.valid, datarc.test) <= 0 or datarc.valid + datarc.test >= 1:
            raise UserError(
                f"datarc.valid={datarc.valid}, datarc.test={datarc.test}: expected shares above 0 "
                "that leave something to train on"
            )
        if bool(datarc.text) == bool(datarc.labels):
            raise UserError("datarc: name either the columns of the labels, or that of the text")

    def _lines(self) -> tuple[list[Line], Counter[str]]:
        """The table's lines, and which characters of their texts were left out how often."""
        dropped: Counter[str] = Counter()

        def spelled(text: str) -> str:
            return " ".join(filter(None, (normalised(word, dropped) for word in text.split())))

        path = self.root / self.config.datarc.table
        return read_table(path, self.config.datarc, spelled), dropped
