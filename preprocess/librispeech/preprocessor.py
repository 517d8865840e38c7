"""Speech recognition on LibriSpeech: a transcript's characters are its labels. Other tasks with
text use the same characters: letters, apostrophe and space.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.config import Config, DataConfig
from preprocess.preprocessor import Preprocessor, Utterance

# 28; the paper counts 29. An answer's end is the LM's own </s> and needs no label.
CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_APOSTROPHES = str.maketrans("’‘`", "'''")


def checked(text: str, where: str) -> str:
    """``text`` with single spaces. Raises ``UserError``, which begins with ``where``, where it is
    empty or has another character than ``CHARACTERS``.
    """
    text = " ".join(text.split())
    if not text:
        raise UserError(f"{where}: no text")
    unknown = next((character for character in text if character not in CHARACTERS), None)
    if unknown is not None:
        raise UserError(
            f"{where}: {unknown!r} in {text[:60]!r}; expected capital letters, apostrophes and "
            "spaces, as LibriSpeech's transcripts have them"
        )
    return text


def normalised(word: str, dropped: Counter[str]) -> str:
    """``word`` in capitals without accents. Other characters than ``CHARACTERS`` are left out, and
    counted in ``dropped``.
    """
    plain = unicodedata.normalize("NFKD", word.translate(_APOSTROPHES)).upper()
    letters = [character for character in plain if not unicodedata.combining(character)]
    kept = [character for character in letters if character in CHARACTERS and character != " "]
    dropped.update(character for character in letters if character not in kept)
    return "".join(kept)


def left_out(dropped: Counter[str]) -> str:
    """A line about what ``normalised`` left out: how many characters, and the most frequent."""
    listed = " ".join(f"{character!r} {count:,}" for character, count in dropped.most_common(9))
    return f"{dropped.total():,} characters left out ({listed})"


@dataclass
class LibriSpeechData(DataConfig):
    train: str = MISSING
    valid: str = MISSING
    test: str = MISSING


@dataclass
class LibriSpeechConfig(Config):
    datarc: LibriSpeechData = field(default_factory=LibriSpeechData)


class LibriSpeech(Preprocessor[LibriSpeechConfig]):
    """The splits are the corpus's own folders, named in ``datarc``."""

    config_class = LibriSpeechConfig
    slots = ("character",)

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """Every character of the transcript."""
        return ((0, character) for character in utterance.labels)

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """The characters that train has, in the order of their codes."""
        return [sorted(*super().label_names(train))]

    def utterances(self, split: str) -> list[Utterance]:
        """The lines of the split's transcripts, sorted by their files' names."""
        folder = self.root / getattr(self.config.datarc, split)
        transcripts = sorted(folder.glob("*/*/*.trans.txt"))
        if not transcripts:
            raise UserError(
                f"{folder}: no <speaker>/<chapter>/*.trans.txt in it; datarc.root_path is the "
                f"folder that holds LibriSpeech's, datarc.{split} names this one"
            )
        return [utterance for path in transcripts for utterance in self._read(path)]

    def _read(self, path: Path) -> Iterator[Utterance]:
        chapter = path.parent.relative_to(self.root)
        for number, line in enumerate(text_lines(path, "not found"), start=1):
            name, _, text = line.partition(" ")
            labels = checked(text, f"{path}, line {number}")
            yield Utterance(f"{chapter.as_posix()}/{name}.flac", labels)
