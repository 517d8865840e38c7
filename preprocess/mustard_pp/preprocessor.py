"""Sarcasm on MUStARD++, whose table has texts of several lines and rows of the context."""

from __future__ import annotations

import csv

from pipeline.errors import UserError
from preprocess.actions.corpus import located
from preprocess.actions.tables import TableRow
from preprocess.table.preprocessor import Table

COLUMNS = ("KEY", "Sarcasm")


class MustardPP(Table):
    """``sarcasm`` is 1 or 0; a row of the context has none, and is left out."""

    def rows_of(self, table: str, own_split: str | None) -> list[TableRow]:
        """The utterances, in the table's order. Raises ``UserError`` for another table."""
        file = self.root / table
        try:
            with open(file, encoding="utf-8-sig", newline="") as handle:
                records = list(csv.DictReader(handle, restval="", strict=True))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}: expected MUStARD++'s table, as CSV: {error}") from None
        absent = [name for name in COLUMNS if not records or name not in records[0]]
        if absent:
            raise UserError(
                f"{file}: expected the columns {', '.join(COLUMNS)}, found "
                f"{', '.join(map(str, records[0] if records else ())) or 'no row'}"
            )
        said = [(record["KEY"], record["Sarcasm"].removesuffix(".0")) for record in records]
        spoken = [(key, sarcasm) for key, sarcasm in said if sarcasm]
        self.say(f"{table}: {len(said) - len(spoken)} rows of the context left out")
        rows = []
        for key, sarcasm in spoken:
            where, values = f"{file}, {key}", {"path": key, "sarcasm": sarcasm}
            path = self.config.datarc.audio.replace("{path}", key)
            path = located(path, self.root, where)
            rows.append(TableRow(where, path, values))
        return rows
