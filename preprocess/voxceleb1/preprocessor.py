"""Speaker identification, or the speaker's gender, on VoxCeleb1 with its published splits."""

from __future__ import annotations

from pipeline.errors import UserError
from preprocess.actions.corpus import Row, read_table
from preprocess.table.preprocessor import Table

META = "vox1_meta.csv"
ID, GENDER = "VoxCeleb1 ID", "Gender"


class VoxCeleb1(Table):
    """Adds the columns ``speaker`` (the first folder of a listed path) and ``gender``."""

    added_columns = ("speaker", "gender")

    def rows_of(self, table: str) -> list[Row]:
        """Return the lines of the list, with these columns."""
        rows = super().rows_of(table)
        for row in rows:
            row.values["speaker"] = row.values["path"].partition("/")[0]
        if "gender" in self.slots:
            meta = read_table(self.root / META, (ID, GENDER), self.say, "\t")
            genders = {row.values[ID]: row.values[GENDER] for row in meta}
            for row in rows:
                if (speaker := row.values["speaker"]) not in genders:
                    raise UserError(f"{row.where}: {self.root / META} has no speaker {speaker}")
                row.values["gender"] = genders[speaker]
        return rows
