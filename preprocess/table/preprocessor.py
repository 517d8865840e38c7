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
from preprocess.actions.config import Config, DataConfig
from preprocess.actions.manifest import inside
from preprocess.librispeech.preprocessor import left_out, normalised
from preprocess.preprocessor import Preprocessor, Utterance


@dataclass
class TableData(DataConfig):
    """The table's file, its columns, the shares of its splits."""

    table: str = MISSING
    path: str = MISSING
    labels: list[str] = field(default_factory=list)
    text: str | None = None
    split: str = MISSING
    speaker: str = MISSING
    valid: float = MISSING
    test: float = MISSING


@dataclass
class TableConfig(Config):
    datarc: TableData = field(default_factory=TableData)


class Table(Preprocessor[TableConfig]):
    """Labels are numbered column by column, in the order of their first appearance in train. The
    labels of a text are its characters, in the order of their codes.
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
        """The names of train, the characters of texts sorted."""
        names = super().label_names(train)
        return [sorted(*names)] if self.config.datarc.text else names

    def utterances(self, split: str) -> list[Utterance]:
        """The table's lines of this split, in its order."""
        datarc = self.config.datarc
        dropped: Counter[str] = Counter()

        def spelled(text: str) -> str:
            return " ".join(filter(None, (normalised(word, dropped) for word in text.split())))

        lines = read_table(self.root / datarc.table, datarc, spelled)
        if split == SPLITS[0]:  # once a table
            if min(datarc.valid, datarc.test) <= 0 or datarc.valid + datarc.test >= 1:
                raise UserError(
                    f"datarc.valid={datarc.valid}, datarc.test={datarc.test}: expected shares "
                    "above 0 that leave something to train on"
                )
            if bool(datarc.text) == bool(datarc.labels):
                raise UserError(
                    "datarc: name either the columns of the labels, or that of the text"
                )
            if dropped:
                self.say(f"{datarc.table}: {left_out(dropped)}")
        splits = draw_splits(lines, datarc, self.config.taskrc.seed)
        return [line.utterance for line, drawn in zip(lines, splits) if drawn == split]


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
            header = [name for name in table.fieldnames or () if name]
            rows = [(table.line_num, row) for row in table]
    except FileNotFoundError:
        raise UserError(
            f"{path}: table not found; datarc.table names it, relative to datarc.root_path"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
    missing = [name for name in wanted if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r} in its first line, which has "
            f"{', '.join(header) or 'nothing'}; name yours in datarc"
        )
    wanted += [name for name in (columns.split, columns.speaker) if name in header]
    lines: list[Line] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        row = {name: (row.get(name) or "").strip() for name in wanted}
        for name, value in row.items():
            if not value:
                raise UserError(f"{where}: nothing in the column {name!r}")
        name = inside(row[columns.path], path.parent, where)
        if seen.setdefault(name, number) != number:
            raise UserError(f"{where}: {name} is already in line {seen[name]}")
        if columns.text:
            labels: Sequence[str] = spelled(row[columns.text])
        else:
            labels = tuple(row[column] for column in columns.labels)
        if not labels:
            raise UserError(f"{where}: no letter in the text {row[columns.text][:60]!r}")
        split = row.get(columns.split)
        if split is not None and split not in SPLITS:
            raise UserError(f"{where}: split {split!r}; expected {', '.join(SPLITS)}")
        lines.append(Line(Utterance(name, labels), split, row.get(columns.speaker)))
    return lines


def draw_splits(lines: Sequence[Line], shares: TableData, seed: int) -> list[str]:
    """The split of each line: the table's own. Else speakers are drawn, where it has them. Else
    each class is divided, so that every split has its share, and train one line at least.
    """
    if all(line.split is not None for line in lines):
        return [line.split for line in lines]
    rng = random.Random(seed)
    if all(line.speaker is not None for line in lines):
        speakers = sorted({line.speaker for line in lines})
        by_speaker = dict(zip(speakers, _draw(len(speakers), shares, rng)))
        return [by_speaker[line.speaker] for line in lines]
    classes: dict[Hashable, list[int]] = {}
    for number, line in enumerate(lines):
        classes.setdefault("" if shares.text else line.utterance.labels, []).append(number)
    splits = [""] * len(lines)
    for members in classes.values():
        for number, split in zip(members, _draw(len(members), shares, rng)):
            splits[number] = split
    return splits


def _draw(count: int, shares: TableData, rng: random.Random) -> list[str]:
    """``count`` splits in random order: at least one train, then test and valid by their shares,
    one each where there are three or more.
    """
    least = 1 if count >= 3 else 0
    test = min(max(least, round(shares.test * count)), count - 1)
    valid = min(max(least, round(shares.valid * count)), count - 1 - test)
    splits = ["test"] * test + ["valid"] * valid + ["train"] * (count - test - valid)
    rng.shuffle(splits)
    return splits
