"""Who speaks, or the speaker's gender, on VoxCeleb1 with its own splits."""

from __future__ import annotations

import csv

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.config import names_in
from preprocess.actions.tables import Form, TableRow, read_table
from preprocess.table.preprocessor import Table

META = "vox1_meta.csv"
ID, GENDER = "VoxCeleb1 ID", "Gender"


class VoxCeleb1(Table):
    """Columns: ``split``, ``speaker``, the first folder of a path, and, on demand, ``gender``."""

    def rows_of(self, table: str, own_split: str | None) -> list[TableRow]:
        """The lines of the list. Raises ``UserError`` for another list, or a speaker whose gender
        is not in vox1_meta.csv.
        """
        form = Form(
            ("split", "path"), " ", audio=names_in("datarc.audio", self.config.datarc.audio)
        )
        missing = "list not found; datarc.root_path is the folder that holds it"
        listed = read_table(
            self.root / table, self.root, ("path", "split"), missing, self.say, form=form
        )
        genders = self._genders() if "gender" in self.slots else None
        rows = []
        for row in listed:
            speaker = row.values["path"].partition("/")[0]
            values = {**row.values, "speaker": speaker}
            if genders is not None:
                if speaker not in genders:
                    raise UserError(f"{row.where}: {self.root / META} has no speaker {speaker}")
                values["gender"] = genders[speaker]
            rows.append(row._replace(values=values))
        return rows

    def _genders(self) -> dict[str, str]:
        """Speaker -> gender."""
        lines = text_lines(self.root / META, "not found; it says each speaker's gender")
        records = list(csv.DictReader(lines, delimiter="\t"))
        if not records or not {ID, GENDER} <= records[0].keys():
            found = ", ".join(map(str, records[0])) if records else "nothing"
            raise UserError(
                f"{self.root / META}: expected tabs and the columns {ID!r}, {GENDER!r}; "
                f"found {found}"
            )
        return {record[ID]: record[GENDER] for record in records}
