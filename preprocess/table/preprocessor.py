"""Any task that a table describes: one line per recording, with its labels or its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.config import Config, DataConfig, names_in
from preprocess.actions.corpus import TableLine, located, read_files, read_table
from preprocess.actions.manifest import first_few
from preprocess.librispeech.preprocessor import left_out, normalised
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.speech2unit.audio import BadAudio, length_and_rate
from preprocess.table.splits import draw_splits, share_out


@dataclass
class TableData(DataConfig):
    """The table or files, the columns, the shares of the splits; config.yaml explains the keys."""

    table: Any = None
    files: str | None = None
    columns: Any = None
    separator: str | None = None
    line_breaks: bool = False
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
    added_columns: tuple[str, ...] = ()  # columns that a subclass adds in lines_of

    @property
    def slots(self) -> tuple[str, ...]:
        """The label columns."""
        datarc = self.config.datarc
        return ("character",) if datarc.text else tuple(datarc.labels)

    def utterances(self, split: str) -> list[Utterance]:
        """Return the rows of this split, in the order of the table."""
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[Utterance]]:
        datarc, seed = self.config.datarc, self.config.taskrc.seed
        tables = self._tables()
        self._lengths: dict[str, tuple[int, int]] = {}
        self._dropped: Counter[str] = Counter()  # characters
        unnamed: Counter[str] = Counter()  # labels
        seen: dict[str, str] = {}  # name -> file and line
        lines, utterances, given = [], [], []
        listed = ((line, split) for table, split in tables.items() for line in self.lines_of(table))
        for line, table_split in listed:
            answers = [line.values[name] for name in datarc.labels] if datarc.names else []
            if unknown := [answer for answer in answers if answer not in datarc.names]:
                unnamed[unknown[0]] += 1
                continue
            utterance = self._utterance(line)
            name = utterance.name or utterance.path
            if seen.setdefault(name, line.where) != line.where:
                raise UserError(f"{line.where}: {name} is already in {seen[name]}")
            word = table_split or line.values.get(datarc.split)
            split = datarc.splits.get(word, word)
            if split not in (None, *SPLITS):
                known = ", ".join(dict.fromkeys((*datarc.splits, *SPLITS)))
                what = f"split {split!r}" if split else f"the field {datarc.split!r} is empty"
                raise UserError(f"{line.where}: {what}; expected {known}")
            lines.append(line)
            utterances.append(utterance)
            given.append(split)
        if self._dropped:
            self.say(f"{next(iter(tables))}: {left_out(self._dropped)}")
        if unnamed:
            what = f"their labels are not in datarc.names ({first_few(map(repr, unnamed))})"
            self.say(f"{unnamed.total():,} rows left out, {what}")
        if None not in given:
            splits, how = given, "as given"
        elif datarc.rows or any(given):
            groups = [tuple(line.values[n] for n in datarc.per or datarc.labels) for line in lines]
            splits, how = share_out(given, groups, datarc.rows, None if datarc.in_order else seed)
        else:
            speakers = [line.values.get(datarc.speaker) for line in lines]
            splits, how = draw_splits(utterances, speakers, datarc.valid, datarc.test, seed)
        self.say(f"{', '.join(tables)}: {len(lines)} rows, splits {how}")
        classes = Counter(pair for utterance in utterances for pair in self.named_labels(utterance))
        if classes and not datarc.text:
            (slot, name), count = classes.most_common()[-1]
            self.say(f"smallest class: {self.slots[slot]} {name!r}, {count} rows")
        return {s: [u for u, split in zip(utterances, splits) if split == s] for s in SPLITS}

    def _tables(self) -> dict[str, str | None]:
        """Return the split of each table or pattern of files. None: its rows are in many splits."""
        datarc = self.config.datarc
        valid, test = datarc.valid, datarc.test
        if not (valid > 0 and test > 0 and valid + test < 1):  # refuses nan, too
            shares = f"datarc.valid={valid}, datarc.test={test}"
            raise UserError(f"{shares}: expected shares above 0, whose sum is below 1")
        if bool(datarc.text) == bool(datarc.labels):
            both = "both are set; empty one, for example datarc.labels=[]"
            raise UserError(f"datarc.labels, datarc.text: {both if datarc.text else 'set one'}")
        if bool(datarc.table) == bool(datarc.files):
            raise UserError("datarc: set either table or files (a pattern of file names)")
        if isinstance(datarc.table, dict):
            return {str(name): split for name, split in datarc.table.items()}
        tables = names_in("datarc.table", datarc.files or datarc.table)
        if len(tables) not in (1, len(SPLITS)):
            listed = ",".join(tables)
            raise UserError(f"datarc.table={listed}: expected one, or train's, valid's, test's")
        return dict(zip(tables, SPLITS if len(tables) > 1 else (None,)))

    def lines_of(self, table: str) -> list[TableLine]:
        """Return the lines of a table or of a pattern of files, with paths in the corpus folder."""
        datarc = self.config.datarc
        labels = [datarc.text] if datarc.text else datarc.labels
        needed = [name for name in (*labels, *datarc.per) if name not in self.added_columns]
        if datarc.files:
            lines = read_files(self.listing, self.root, table)
            if missing := [name for name in needed if name not in lines[0].values]:
                raise UserError(f"datarc.files={table}: no {{{missing[0]}}} in it; add it")
            return lines
        form = datarc.separator, datarc.columns or (), datarc.line_breaks
        filled = {datarc.path, datarc.speaker, *datarc.per}
        filled |= set() if datarc.names else set(labels)
        lines, templates = [], names_in("datarc.audio", datarc.audio)
        for line in read_table(self.root / table, [datarc.path, *needed], self.say, *form):
            if empty := [name for name in line.values if name in filled and not line.values[name]]:
                raise UserError(f"{line.where}: nothing in the column {empty[0]!r}")
            columns = {**line.values, "path": line.path.removeprefix(datarc.prefix)}
            try:
                paths = [template.format_map(columns) for template in templates]
            except (LookupError, ValueError, AttributeError) as error:
                raise UserError(f"{line.where}: datarc.audio: no column {error}") from None
            path = next((path for path in paths[:-1] if (self.root / path).exists()), paths[-1])
            lines.append(line._replace(path=located(path, self.root, line.where)))
        return lines

    def _utterance(self, line: TableLine) -> Utterance:
        """Return the labels or the text of a line, and the piece of the file."""
        datarc = self.config.datarc
        answers = [line.values[name] for name in datarc.labels]
        labels: Sequence[str] = tuple(datarc.names.get(answer, answer) for answer in answers)
        if datarc.text:
            text = line.values[datarc.text]
            words = [normalised(word, self._dropped) for word in text.split()]
            labels = " ".join(filter(None, words))
            if not labels:
                raise UserError(f"{line.where}: no letter in the text {text[:60]!r}")
        not_times = (datarc.path, datarc.text, *datarc.labels)
        columns = (datarc.start, datarc.end, datarc.duration)
        times = ["" if name in not_times else line.values.get(name, "") for name in columns]
        return Utterance(line.path, labels, *(self._piece(line, *times) if any(times) else ()))

    def _piece(self, line: TableLine, *times: str) -> tuple[int, int | None, str]:
        """Return first sample, number of samples (at the file's own rate) and name of a piece.
        ``times``: start, end, length in seconds, or "". The end may be 5 ms too large (rounding).
        """
        (start, end, length), path = times, line.path
        try:
            first, last = float(start or 0), float(end) if end else None
            last = first + float(length) if length else last
        except ValueError:
            form = "expected seconds such as 1.25 in the columns datarc.start and datarc.end"
            raise UserError(f"{line.where}: start {start!r}, end {end!r}; {form}") from None
        name = f"{path}:{_written(first)}-{'end' if last is None else _written(last)}"
        try:
            if path not in self._lengths:
                self._lengths[path] = length_and_rate(self.root / path)
        except BadAudio:
            return 0, None, name  # generate_manifest reports all bad audio together
        frames, rate = self._lengths[path]
        last = frames / rate if last is None else last
        if not 0 <= first < last <= frames / rate + 0.005:  # refuses nan, too
            piece = f"{line.where}: {first:g} to {last:g} s"
            raise UserError(f"{piece}; {path} lasts {frames / rate:.3f} s")
        begin = round(first * rate)
        return begin, max(1, min(round(last * rate), frames) - begin), name


def _written(seconds: float) -> str:
    """Return ``seconds`` with three decimals, or with more if needed."""
    return f"{seconds:.3f}" if round(seconds, 3) == seconds else repr(seconds)
