"""Slot filling on Audio SNIPS in SUPERB's layout. Labels are the characters of a command, and the
slot type before and after each value. Both sides have the same label: there are 39 slot types, and
the paper's 69 labels, which 100 units name, leave no room for separate begin and end labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from omegaconf import MISSING

from pipeline.errors import UserError
from pipeline.files import text_lines
from preprocess.actions.config import Config, DataConfig
from preprocess.actions.manifest import first_few
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
    """Each split has its own speakers. Characters are numbered first, then slot types."""

    config_class = AudioSnipsConfig
    slots = ("character", "slot_type")

    def named_labels(self, utterance: Utterance) -> Iterable[tuple[int, str]]:
        """Return the labels: a name of one letter is a character, a longer one a slot type."""
        return ((int(len(name) > 1), name) for name in utterance.labels)

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """Return the characters and slot types of train, sorted."""
        return [sorted(names) for names in super().label_names(train)]

    def utterances(self, split: str) -> list[Utterance]:
        """Return the wavs of the split's speakers, sorted by name. Each needs a line of text."""
        texts, speakers = self._texts, set(getattr(self.config.datarc, f"{split}_speakers"))
        wavs = self.listing.files(self.root / split, "**/*", ".wav")
        paths = [path for path in wavs if path.stem.split("-")[0] in speakers]
        if not paths:
            what = f"{self.root / split}: no .wav of {', '.join(sorted(speakers))}"
            keys = f"the folder that contains {TEXT}, and datarc.{split}_speakers to its voices"
            raise UserError(f"{what}; set datarc.root_path to {keys}")
        if textless := [path for path in paths if path.stem not in texts]:
            raise UserError(f"{self.root / TEXT}: no line for {textless[0].stem} ({textless[0]})")
        spoken = {path.stem for path in paths}
        named = (name for name in texts if f"-{split}-" in name and name.split("-")[0] in speakers)
        silent = [name for name in named if name not in spoken]
        for count, what in (
            (len(wavs) - len(paths), "recordings of other voices left out"),
            (len(silent), f"lines of {TEXT} without a recording ({first_few(silent)})"),
        ):
            if count:
                self.say(f"{split}: {count} {what}")
        return [
            Utterance(path.relative_to(self.root).as_posix(), texts[path.stem])
            for path in sorted(paths, key=lambda path: path.name)
        ]

    @cached_property
    def _texts(self) -> dict[str, tuple[str, ...]]:
        """Utterance -> labels, from lines ``<utterance> BOS words EOS<TAB>O tags intent``."""
        missing = f"not found; datarc.root_path is the folder that contains {TEXT} and {SLOTS}"
        slots = [line.strip() for line in text_lines(self.root / SLOTS, missing)]
        slot_types = {name.removeprefix("B-").removeprefix("I-") for name in slots}
        dropped: Counter[str] = Counter()
        texts: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(text_lines(self.root / TEXT, missing), start=1):
            where = f"{self.root / TEXT}, line {number}"
            text, _, tagged = line.partition("\t")
            name, *words = text.split()
            tags = tagged.split()[:-1]  # the intent is last
            if words[:1] != ["BOS"] or words[-1:] != ["EOS"] or len(tags) != len(words) - 1:
                form = "'<utterance> BOS words EOS', a tab, 'O', one tag per word, and the intent"
                raise UserError(f"{where}: expected {form}, found {line[:60]!r}")
            pieces: list[tuple[str, list[str]]] = []  # slot type or "", words
            for word, tag in zip(words[1:-1], tags[1:]):
                kind = tag.partition("-")[2]
                if kind and kind not in slot_types:
                    raise UserError(f"{where}: slot type {kind} is not in {SLOTS}")
                if not tag.startswith("I-") or not pieces or pieces[-1][0] != kind:
                    pieces.append((kind, []))
                if word := normalised(word, dropped):
                    pieces[-1][1].append(word)
            labels = labels_of((kind, " ".join(value)) for kind, value in pieces if value)
            if not labels:
                raise UserError(f"{where}: no text")
            if texts.setdefault(name, labels) != labels:
                raise UserError(f"{where}: {name} has another text in an earlier line")
        if dropped:
            self.say(f"{TEXT}: {left_out(dropped)}")
        return texts


def labels_of(pieces: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the labels of pieces (slot type or "", value), with spaces between the pieces."""
    labels: list[str] = []
    for kind, value in pieces:
        between = [" "] if labels else []
        labels += [*between, kind, *value, kind] if kind else [*between, *value]
    return tuple(labels)
