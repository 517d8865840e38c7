"""Any task that a table describes: a line a recording, with its labels or its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.config import Config, DataConfig, names_in
from preprocess.actions.tables import TableRow, read_table
from preprocess.librispeech.preprocessor import left_out, normalised
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.speech2unit.audio import BadAudio, length_and_rate
from preprocess.table.splits import Line, draw_splits


@dataclass
class TableData(DataConfig):
    """The table's file or files, its columns, the shares of its splits."""

    table: Any = MISSING  # a file, or a list: train's, valid's and test's
    path: str = MISSING
    labels: list[str] = field(default_factory=list)
    text: str | None = None
    start: str | None = "start"  # older configs lack it
    end: str | None = "end"
    split: str | None = MISSING
    speaker: str | None = MISSING
    valid: float = MISSING
    test: float = MISSING


@dataclass
class TableConfig(Config):
    datarc: TableData = field(default_factory=TableData)


class Table(Preprocessor[TableConfig]):
    """Labels are numbered column by column, in the order of their first appearance in train."""

    config_class = TableConfig

    @property
    def slots(self) -> tuple[str, ...]:
        """The label columns."""
        datarc = self.config.datarc
        return ("character",) if datarc.text else tuple(datarc.labels)

    def utterances(self, split: str) -> list[Utterance]:
        """The lines of this split, in the table's order."""
        if split == SPLITS[0] or not hasattr(self, "_splits"):  # read once, for all of them
            self._splits = self._read_and_draw()
        return self._splits[split]

    def _read_and_draw(self) -> dict[str, list[Utterance]]:
        datarc = self.config.datarc
        if not (datarc.valid > 0 and datarc.test > 0 and datarc.valid + datarc.test < 1):  # nor nan
            raise UserError(
                f"datarc.valid={datarc.valid}, datarc.test={datarc.test}: expected shares "
                "above 0 that leave something to train on"
            )
        if bool(datarc.text) == bool(datarc.labels):
            raise UserError("datarc: name either the columns of the labels, or that of the text")
        tables = names_in("datarc.table", datarc.table)
        if len(tables) not in (1, len(SPLITS)):
            raise UserError(
                f"datarc.table={','.join(tables)}: expected one table, or train's, valid's, test's"
            )
        own_splits = SPLITS if len(tables) > 1 else (None,)
        self._dropped: Counter[str] = Counter()
        self._rows: dict[str, str] = {}  # row by its name
        self._lengths: dict[str, tuple[int, int]] = {}
        lines = [line for pair in zip(tables, own_splits) for line in self._read(*pair)]
        if self._dropped:
            self.say(f"{tables[0]}: {left_out(self._dropped)}")
        splits, how = draw_splits(lines, datarc.valid, datarc.test, self.config.taskrc.seed)
        self.say(f"{', '.join(tables)}: {len(lines)} rows, splits {how}")
        classes = Counter(pair for line in lines for pair in self.named_labels(line.utterance))
        if classes and not datarc.text:
            (slot, name), count = classes.most_common()[-1]
            self.say(f"smallest class: {self.slots[slot]} {name!r}, {count} rows")
        return {
            split: [line.utterance for line, drawn in zip(lines, splits) if drawn == split]
            for split in SPLITS
        }

    def _read(self, table: str, own_split: str | None) -> Iterator[Line]:
        """The table's lines, of ``own_split`` or of the splits that it names.

        Raises ``UserError`` for a text without letters, another split, or audio that was read.
        """
        datarc = self.config.datarc
        columns = [datarc.path, *([datarc.text] if datarc.text else datarc.labels)]
        times = [None if name in columns else name for name in (datarc.start, datarc.end)]
        others = (datarc.speaker, None if own_split else datarc.split)
        missing = "table not found; datarc.table names it, relative to datarc.root_path"
        file = self.root / table
        for row in read_table(file, self.root, columns, missing, self.say, others, times):
            labels: Sequence[str] = tuple(row.values[name] for name in columns[1:])
            if datarc.text:
                words = [normalised(word, self._dropped) for word in labels[0].split()]
                if not any(words):
                    raise UserError(f"{row.where}: no letter in the text {labels[0][:60]!r}")
                labels = " ".join(filter(None, words))
            split = own_split or row.values.get(datarc.split)
            if split not in (None, *SPLITS):
                raise UserError(f"{row.where}: split {split!r}; expected {', '.join(SPLITS)}")
            start, end = (row.values.get(name, "") for name in times)
            piece = self._segment(row, start, end) if start or end else (0, None, None)
            utterance = Utterance(row.path, labels, *piece)
            name = utterance.name or utterance.path
            first = self._rows.setdefault(name, row.where)
            if first != row.where:
                raise UserError(f"{row.where}: {name} is already in {first}")
            yield Line(utterance, split, row.values.get(datarc.speaker))

    def _segment(self, row: TableRow, start: str, end: str) -> tuple[int, int | None, str]:
        """Start and samples, at the file's own rate, of the piece from ``start`` to ``end`` seconds
        (empty: the file's), and the row's name. ``end`` may lie 5 ms behind the file's, rounded.
        """
        try:
            first, last = float(start or 0), float(end) if end else None
        except ValueError:
            raise UserError(
                f"{row.where}: start {start!r}, end {end!r}; expected seconds such as 1.25 (datarc."
                "start and datarc.end name the columns; empty: none)"
            ) from None
        name = f"{row.path}:{_written(first)}-{'end' if last is None else _written(last)}"
        try:
            if row.path not in self._lengths:
                path = self.root / row.path
                self._lengths[row.path] = length_and_rate(path, at_once=False)
        except BadAudio:
            return 0, None, name  # reported with all others
        frames, rate = self._lengths[row.path]
        last = frames / rate if last is None else last
        if not 0 <= first < last <= frames / rate + 0.005:  # nor nan
            raise UserError(
                f"{row.where}: {first:g} to {last:g} s; {row.path} lasts {frames / rate:.3f} s"
            )
        begin = round(first * rate)
        return begin, max(1, min(round(last * rate), frames) - begin), name


def _written(seconds: float) -> str:
    """With three decimals, or more where they are needed."""
    return f"{seconds:.3f}" if round(seconds, 3) == seconds else repr(seconds)
