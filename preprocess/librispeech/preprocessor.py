"""Speech recognition on LibriSpeech: a transcript's characters are its labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.characters import checked
from preprocess.actions.config import Config, DataConfig
from preprocess.preprocessor import Preprocessor, Utterance


@dataclass
class LibriSpeechData(DataConfig):
    train: str = MISSING
    valid: str = MISSING
    test: str = MISSING


@dataclass
class LibriSpeechConfig(Config):
    datarc: LibriSpeechData = field(default_factory=LibriSpeechData)


class LibriSpeech(Preprocessor[LibriSpeechConfig]):
    """The splits are the corpus' own folders, named in ``datarc``."""

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
