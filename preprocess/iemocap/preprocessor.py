"""Emotion on IEMOCAP: the utterances of all sessions, with the emotion that annotators chose."""

from __future__ import annotations

import re

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.corpus import TableLine
from preprocess.table.preprocessor import Table

_UTTERANCE = re.compile(r"\[[\d. -]+\]\s+(?P<name>\w+)_(?P<number>\w+)\s+(?P<emotion>[a-z]{3})\b")


class Iemocap(Table):
    """Adds the columns ``emotion``, in three letters, and ``session``, such as Session5."""

    def lines_of(self, table: str) -> list[TableLine]:
        """Return the utterances, session by session, in the order of the annotation files."""
        lines = []
        for file in self.listing.files(self.root, table, ".txt"):
            session = file.relative_to(self.root).parts[0]
            for number, line in enumerate(text_lines(file, "not found"), start=1):
                if match := _UTTERANCE.match(line):
                    path = "{0}/sentences/wav/{1}/{1}_{2}.wav".format(session, *match.groups())
                    values = {"emotion": match["emotion"], "session": session}
                    lines.append(TableLine(f"{file}, line {number}", path, values))
        if not lines:
            form = "IEMOCAP's lines '[6.29 - 8.24] Ses01F_impro01_F000 neu', in Session1 to 5"
            raise UserError(f"{self.root}: no utterance in {table}; expected {form}")
        return lines
