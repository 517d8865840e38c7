"""Speech recognition on LibriSpeech. The labels are the characters of a transcript: letters,
apostrophe and space. Other tasks with texts use the same characters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.config import Config, DataConfig, names_in
from preprocess.actions.manifest import first_few
from preprocess.preprocessor import Preprocessor, Utterance

# 28 characters; the paper counts 29. The LM's own </s> ends an answer and needs no label.
CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TRANSCRIPT = ".trans.txt"
AUDIO = (".flac", ".wav", ".mp3", ".ogg", ".opus")  # people convert the .flac files
_APOSTROPHES = str.maketrans("’‘`", "'''")


def normalised(word: str, dropped: Counter[str]) -> str:
    """Return ``word`` in capitals without accents. Drop and count what is not in ``CHARACTERS``."""
    plain = unicodedata.normalize("NFKD", word.translate(_APOSTROPHES)).upper()
    letters = [character for character in plain if not unicodedata.combining(character)]
    kept = [character for character in letters if character in CHARACTERS and character != " "]
    dropped.update(character for character in letters if character not in kept)
    return "".join(kept)


def left_out(dropped: Counter[str]) -> str:
    """Return a line about the characters that ``normalised`` dropped: their number, and which."""
    listed = " ".join(f"{character!r} {count:,}" for character, count in dropped.most_common(9))
    return f"{dropped.total():,} characters left out ({listed})"


@dataclass
class LibriSpeechData(DataConfig):
    """The folder of each split, or a list of folders."""

    train: Any = MISSING
    valid: Any = MISSING
    test: Any = MISSING


@dataclass
class LibriSpeechConfig(Config):
    datarc: LibriSpeechData = field(default_factory=LibriSpeechData)


class LibriSpeech(Preprocessor[LibriSpeechConfig]):
    """The splits are folders of the corpus; ``datarc`` names them."""

    config_class = LibriSpeechConfig
    slots = ("character",)

    def utterances(self, split: str) -> list[Utterance]:
        """Return the lines of the split's transcripts, folder by folder, sorted by file name."""
        utterances: list[Utterance] = []
        for name in names_in(f"datarc.{split}", getattr(self.config.datarc, split)):
            folder = self.root / name
            transcripts = self.listing.files(folder, "*/*/*.txt", TRANSCRIPT)
            if not transcripts:
                remedy = f"set datarc.root_path to the folder that contains datarc.{split}={name}"
                raise UserError(f"{folder}: no <speaker>/<chapter>/*{TRANSCRIPT} in it; {remedy}")
            paths = self.listing.files(folder, "*/*/*", *AUDIO, ".txt")
            audio = {path.with_suffix(""): path for path in paths if path.suffix != ".txt"}
            utterances += [row for path in transcripts for row in self._read(path, audio)]
            if audio:
                listed = first_few(path.name for path in audio.values())
                self.say(f"{name}: {len(audio)} recordings left out, without a text ({listed})")
        return utterances

    def _read(self, transcript: Path, audio: dict[Path, Path]) -> Iterator[Utterance]:
        """Yield the lines of a transcript. Removes their files from ``audio`` (stem -> file)."""
        for number, line in enumerate(text_lines(transcript, "not found"), start=1):
            name, _, text = line.partition(" ")
            text = " ".join(text.split())
            unknown = [character for character in text if character not in CHARACTERS]
            if unknown or not text:
                problem = f"{unknown[0]!r} in {text[:60]!r}" if unknown else "no text"
                form = "capital letters, apostrophes and spaces, as LibriSpeech's transcripts have"
                raise UserError(f"{transcript}, line {number}: {problem}; expected {form}")
            stem = transcript.parent / name
            path = audio.pop(stem, stem.with_name(f"{name}{AUDIO[0]}"))
            yield Utterance(path.relative_to(self.root).as_posix(), text)
