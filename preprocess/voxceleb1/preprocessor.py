"""Speaker identification, or the speaker's gender, on VoxCeleb1 with its published splits."""

from __future__ import annotations

from pipeline.errors import UserError
from preprocess.actions.corpus import TableLine, read_table
from preprocess.table.preprocessor import Table

META = "vox1_meta.csv"
ID, GENDER = "VoxCeleb1 ID", "Gender"


class VoxCeleb1(Table):
    """Adds the columns ``speaker`` (the first folder of a listed path) and ``gender``."""

    added_columns = ("speaker", "gender")

    def lines_of(self, table: str) -> list[TableLine]:
        """Return the lines of the list, with these columns."""
        lines = super().lines_of(table)
        for line in lines:
            line.values["speaker"] = line.values["path"].partition("/")[0]
        if "gender" in self.slots:
            meta = read_table(self.root / META, (ID, GENDER), self.say, "\t")
            genders = {line.values[ID]: line.values[GENDER] for line in meta}
            for line in lines:
                if (speaker := line.values["speaker"]) not in genders:
                    raise UserError(f"{line.where}: {self.root / META} has no speaker {speaker}")
                line.values["gender"] = genders[speaker]
        return lines
