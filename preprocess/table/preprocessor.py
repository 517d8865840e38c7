"""Any task that a table describes: a line a recording, with its labels or its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.config import Config, DataConfig, names_in
from preprocess.actions.corpus import first_few
from preprocess.actions.tables import Form, TableRow, read_files, read_table
from preprocess.librispeech.preprocessor import left_out, normalised
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.speech2unit.audio import BadAudio, length_and_rate
from preprocess.table.splits import Line, draw_splits, share_out


@dataclass
class TableData(DataConfig):
    """The table or files, their columns, the shares of the splits; config.yaml explains them."""

    table: Any = None
    files: str | None = None
    columns: list[str] = field(default_factory=list)
    separator: str | None = None
    prefix: str = ""
    audio: Any = "{path}"
    path: str = "path"
    labels: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    start: str | None = "start"
    end: str | None = "end"
    duration: str | None = None
    split: str | None = "split"
    splits: dict[str, Any] = field(default_factory=dict)
    speaker: str | None = "speaker"
    valid: float = 0.1
    test: float = 0.1
    rows: dict[str, float] = field(default_factory=dict)
    per: list[str] = field(default_factory=list)
    in_order: bool = False


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
        if bool(datarc.table) == bool(datarc.files):
            raise UserError("datarc: name either the table, or the pattern of the files")
        tables = self._tables()
        self._dropped: Counter[str] = Counter()
        self._unnamed: Counter[str] = Counter()
        self._rows: dict[str, str] = {}  # row by its name
        self._lengths: dict[str, tuple[int, int]] = {}
        lines = [line for pair in tables.items() for line in self._read(*pair)]
        if self._dropped:
            self.say(f"{next(iter(tables))}: {left_out(self._dropped)}")
        if self._unnamed:
            total, names = self._unnamed.total(), first_few(map(repr, self._unnamed))
            self.say(f"{total:,} rows left out, their labels are not in datarc.names ({names})")
        seed = self.config.taskrc.seed
        if datarc.rows or len({line.split is None for line in lines}) > 1:
            splits, how = share_out(lines, datarc.rows, None if datarc.in_order else seed)
        else:
            splits, how = draw_splits(lines, datarc.valid, datarc.test, seed)
        self.say(f"{', '.join(tables)}: {len(lines)} rows, splits {how}")
        classes = Counter(pair for line in lines for pair in self.named_labels(line.utterance))
        if classes and not datarc.text:
            (slot, name), count = classes.most_common()[-1]
            self.say(f"smallest class: {self.slots[slot]} {name!r}, {count} rows")
        return {
            split: [line.utterance for line, drawn in zip(lines, splits) if drawn == split]
            for split in SPLITS
        }

    def _tables(self) -> dict[str, str | None]:
        """The split that each table is; None: its lines say, or are drawn. For files, the pattern.

        Raises ``UserError`` for another number of tables in a list than one or three.
        """
        datarc = self.config.datarc
        if datarc.files:
            return {datarc.files: None}
        if isinstance(datarc.table, dict):
            return {str(name): split for name, split in datarc.table.items()}
        tables = names_in("datarc.table", datarc.table)
        if len(tables) not in (1, len(SPLITS)):
            raise UserError(
                f"datarc.table={','.join(tables)}: expected one table, or train's, valid's, test's"
            )
        return dict(zip(tables, SPLITS if len(tables) > 1 else (None,)))

    def rows_of(self, table: str, own_split: str | None) -> list[TableRow]:
        """The rows of a table, or of the files that match; each has all columns that are named."""
        datarc = self.config.datarc
        labels = [datarc.text] if datarc.text else datarc.labels
        if datarc.files:
            rows = read_files(self.listing, self.root, table)
            if absent := [name for name in (*labels, *datarc.per) if name not in rows[0].values]:
                raise UserError(f"datarc.files={table}: no {{{absent[0]}}} in it")
            return rows
        columns = [datarc.path, *labels, *datarc.per]
        others = (datarc.speaker, None if own_split else datarc.split)
        missing = "table not found; datarc.table names it, relative to datarc.root_path"
        audio = names_in("datarc.audio", datarc.audio)
        form = Form(datarc.columns, datarc.separator, datarc.prefix, audio)
        file, times = self.root / table, self._times()
        return read_table(file, self.root, columns, missing, self.say, others, times, form)

    def _times(self) -> list[str | None]:
        """The columns of a piece's start, end and length, None for those that are labels."""
        datarc = self.config.datarc
        others = (datarc.path, datarc.text, *datarc.labels)
        times = (datarc.start, datarc.end, datarc.duration)
        return [None if name in others else name for name in times]

    def _read(self, table: str, own_split: str | None) -> Iterator[Line]:
        """The table's lines, of ``own_split`` or of the splits that it names.

        Raises ``UserError`` for a text without letters, another split, or audio that was read.
        """
        datarc = self.config.datarc
        for row in self.rows_of(table, own_split):
            labels: Sequence[str]
            if datarc.text:
                text = row.values[datarc.text]
                words = [normalised(word, self._dropped) for word in text.split()]
                if not any(words):
                    raise UserError(f"{row.where}: no letter in the text {text[:60]!r}")
                labels = " ".join(filter(None, words))
            else:
                labels = tuple(row.values[name] for name in datarc.labels)
                if unnamed := [
                    name for name in labels if datarc.names and name not in datarc.names
                ]:
                    self._unnamed[unnamed[0]] += 1
                    continue
                labels = tuple(datarc.names.get(name, name) for name in labels)
            name = own_split or row.values.get(datarc.split)
            split = datarc.splits.get(name, name)
            if split not in (None, *SPLITS):
                known = ", ".join(dict.fromkeys((*datarc.splits, *SPLITS)))
                raise UserError(f"{row.where}: split {split!r}; expected {known}")
            group = tuple(row.values[name] for name in datarc.per or datarc.labels)
            times = [row.values.get(name, "") for name in self._times()]
            piece = self._segment(row, *times) if any(times) else (0, None, None)
            utterance = Utterance(row.path, labels, *piece)
            name = utterance.name or utterance.path
            first = self._rows.setdefault(name, row.where)
            if first != row.where:
                raise UserError(f"{row.where}: {name} is already in {first}")
            yield Line(utterance, split, row.values.get(datarc.speaker), group)

    def _segment(
        self, row: TableRow, start: str, end: str, length: str
    ) -> tuple[int, int | None, str]:
        """Start and samples, at the file's own rate, of the piece from ``start`` to ``end`` seconds
        (empty: the file's), and the row's name. ``end`` may lie 5 ms behind the file's, rounded.
        """
        try:
            first, last = float(start or 0), float(end) if end else None
            last = first + float(length) if length else last
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
