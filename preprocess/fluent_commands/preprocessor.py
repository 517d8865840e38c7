"""Intent classification on Fluent Speech Commands: an action, an object and a location for each
command.
"""

from __future__ import annotations

from preprocess.actions.config import Config
from preprocess.actions.tables import read_table
from preprocess.preprocessor import Preprocessor, Utterance


class FluentCommands(Preprocessor[Config]):
    """The corpus's own splits. Actions are numbered first, then objects, then locations."""

    slots = ("action", "object", "location")

    def utterances(self, split: str) -> list[Utterance]:
        """The lines of ``data/<split>_data.csv``, in its order."""
        path = self.root / "data" / f"{split}_data.csv"
        missing = "not found; datarc.root_path is the folder that holds data/ and wavs/"
        rows = read_table(path, self.root, ("path", *self.slots), missing, self.say)
        return [Utterance(row.path, tuple(row.values[slot] for slot in self.slots)) for row in rows]
