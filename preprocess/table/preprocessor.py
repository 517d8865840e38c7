"""Any task that a table describes: a line a recording, with its labels or its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.characters import left_out, normalised
from preprocess.config import Config
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.table.columns import TableData
from preprocess.table.reading import Line, read_table
from preprocess.table.splits import draw_splits


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
