"""Slot filling on Audio SNIPS as SUPERB lays it out. Labels are a command's characters, and a
slot's type before and after its value.

One label for both sides, not a begin and an end: with 39 slot types the paper's 69 labels, and the
100 units that name them, leave no room for more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.config import Config, DataConfig
from preprocess.actions.corpus import first_few
from preprocess.librispeech.preprocessor import left_out, normalised
from preprocess.preprocessor import Preprocessor, Utterance

TEXT, SLOTS = "all.iob.snips.txt", "slots.txt"


@dataclass
class AudioSnipsData(DataConfig):
    train_speakers: list[str] = MISSING
    valid_speakers: list[str] = MISSING
    test_speakers: list[str] = MISSING


@dataclass
class AudioSnipsConfig(Config):
    datarc: AudioSnipsData = field(default_factory=AudioSnipsData)


class AudioSnips(Preprocessor[AudioSnipsConfig]):
    """The files of a split's own speakers in its folder. Characters are numbered first, then slot
    types.
    """

    config_class = AudioSnipsConfig
    slots = ("character", "slot_type")

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """One letter is a character; a longer name is a slot type."""
        return ((int(len(name) > 1), name) for name in utterance.labels)

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """The characters and slot types of train, sorted."""
        return [sorted(names) for names in super().label_names(train)]

    def utterances(self, split: str) -> list[Utterance]:
        """The wavs of the split's speakers, sorted by name. Raises ``UserError`` for one without a
        line of text.
        """
        texts = self._read_texts()
        speakers = set(getattr(self.config.datarc, f"{split}_speakers"))
        wavs = self.listing.files(self.root / split, "**/*", ".wav")
        paths = [path for path in wavs if path.stem.split("-")[0] in speakers]
        utterances = []
        for path in sorted(paths, key=lambda path: path.name):
            if path.stem not in texts:
                raise UserError(f"{self.root / TEXT}: no line for {path.stem} ({path})")
            name = path.relative_to(self.root).as_posix()
            utterances.append(Utterance(name, texts[path.stem]))
        if not utterances:
            raise UserError(
                f"{self.root / split}: no .wav of {', '.join(sorted(speakers))}; datarc.root_path "
                f"is the folder that holds {TEXT}, datarc.{split}_speakers names the voices"
            )
        spoken = {path.stem for path in paths}
        silent = [name for name in texts if f"-{split}-" in name and name not in spoken]
        silent = [name for name in silent if name.split("-")[0] in speakers]
        for count, what in (
            (len(wavs) - len(paths), "recordings of other voices left out"),
            (len(silent), f"lines of {TEXT} without a recording ({first_few(silent)})"),
        ):
            if count:
                self.say(f"{split}: {count} {what}")
        return utterances

    def _read_texts(self) -> dict[str, tuple[str, ...]]:
        """The labels of each line, by utterance; read once."""
        if not hasattr(self, "_texts"):
            slot_types = self._slot_types()
            dropped: Counter[str] = Counter()
            path = self.root / TEXT
            lines = _lines(path)
            self._texts: dict[str, tuple[str, ...]] = {}
            for number, line in lines:
                name, labels = _parse(line, path, number, slot_types, dropped)
                if self._texts.setdefault(name, labels) != labels:
                    raise UserError(f"{path}, line {number}: {name} has another text further up")
            if dropped:
                self.say(f"{TEXT}: {left_out(dropped)}")
        return self._texts

    def _slot_types(self) -> set[str]:
        """The names of slots.txt, without its first line (no slot)."""
        names = [line.strip() for _, line in list(_lines(self.root / SLOTS))[1:]]
        return {name.removeprefix("B-").removeprefix("I-") for name in names if name}


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    missing = f"not found; datarc.root_path is the folder that holds {TEXT} and {SLOTS}"
    return enumerate(text_lines(path, missing), start=1)


def _parse(
    line: str, path: Path, number: int, slot_types: set[str], dropped: Counter[str]
) -> tuple[str, tuple[str, ...]]:
    """Utterance and labels of ``<utterance> BOS words EOS<TAB>O tags intent``."""
    text, _, tagged = line.partition("\t")
    name, *words = text.split()
    tags = tagged.split()[:-1]  # the intent is last
    if words[:1] != ["BOS"] or words[-1:] != ["EOS"] or len(tags) != len(words) - 1:
        raise UserError(
            f"{path}, line {number}: expected '<utterance> BOS words EOS', a tab, 'O', a tag for "
            f"each word and the intent, found {line[:60]!r}"
        )
    pieces = []  # (slot type or "", words)
    for word, tag in zip(words[1:-1], tags[1:]):
        kind = tag.partition("-")[2]
        if kind and kind not in slot_types:
            raise UserError(f"{path}, line {number}: slot type {kind} is not in {SLOTS}")
        if not tag.startswith("I-") or not pieces or pieces[-1][0] != kind:
            pieces.append((kind, []))
        if word := normalised(word, dropped):
            pieces[-1][1].append(word)
    labels = labels_of((kind, " ".join(value)) for kind, value in pieces if value)
    if not labels:
        raise UserError(f"{path}, line {number}: no text")
    return name, labels


def labels_of(pieces: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """The labels of (slot type or "", value) pieces: a space between pieces, and a slot's type
    before and after its value.
    """
    labels: list[str] = []
    for kind, value in pieces:
        if labels:
            labels.append(" ")
        labels += [kind, *value, kind] if kind else value
    return tuple(labels)
