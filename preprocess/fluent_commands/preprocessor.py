"""Intent classification on Fluent Speech Commands: an action, an object and a location for each
command.
"""

from __future__ import annotations

import csv

from pipeline.errors import UserError
from preprocess.actions.config import Config
from preprocess.preprocessor import Preprocessor, Utterance


class FluentCommands(Preprocessor[Config]):
    """The corpus's own splits. Actions are numbered first, then objects, then locations."""

    slots = ("action", "object", "location")

    def utterances(self, split: str) -> list[Utterance]:
        """The lines of ``data/<split>_data.csv``, in its order."""
        path = self.root / "data" / f"{split}_data.csv"
        try:
            with open(path, encoding="utf-8-sig", newline="") as handle:
                table = csv.DictReader(handle)
                missing = {"path", *self.slots} - set(table.fieldnames or ())
                rows = list(table)
        except FileNotFoundError:
            raise UserError(
                f"{path}: not found; datarc.root_path is the folder that holds data/ and wavs/"
            ) from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
        if missing:
            raise UserError(f"{path}: no column {', '.join(sorted(missing))} in its first line")
        for number, row in enumerate(rows, start=2):
            if not all(row[column] for column in ("path", *self.slots)):
                raise UserError(f"{path}, line {number}: path, action, object or location is empty")
        return [Utterance(row["path"], tuple(row[slot] for slot in self.slots)) for row in rows]
