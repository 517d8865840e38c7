"""Keyword spotting on Speech Commands v0.01 with the SUPERB splits: ten keywords, ``_unknown_`` and
``_silence_``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.rows import SPLITS
from preprocess.actions.config import Config, DataConfig
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.speech2unit.audio import BadAudio, length_and_rate

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*KEYWORDS, UNKNOWN, SILENCE)  # the label is the index
TRAIN_FOLDER, TEST_FOLDER = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
NOISE_FOLDER = f"{TRAIN_FOLDER}/_background_noise_"
MAX_WAVS_PER_CLASS = 2**27 - 1


def which_split(file_name: str) -> str | None:
    """The dataset's own rule, which keeps a speaker in one split. None: in neither train nor valid.

    ``file_name`` is like ``a6d586b7_nohash_4.wav``; the part before ``_nohash_`` is the speaker.
    """
    speaker = re.sub(r"_nohash_.*$", "", file_name)
    digest = int(hashlib.sha1(speaker.encode("utf-8")).hexdigest(), 16)
    percentage = (digest % (MAX_WAVS_PER_CLASS + 1)) * (100.0 / MAX_WAVS_PER_CLASS)
    if percentage < 10:
        return "valid"
    return None if percentage < 20 else "train"


class Drawing(Enum):
    """How a split's rows come from its files."""

    drawn = "drawn"
    each_once = "each_once"


@dataclass
class SpeechCommandsData(DataConfig):
    train: Drawing = field(default=Drawing.drawn)
    valid: Drawing = field(default=Drawing.drawn)


@dataclass
class SpeechCommandsConfig(Config):
    datarc: SpeechCommandsData = field(default_factory=SpeechCommandsData)


class SpeechCommands(Preprocessor[SpeechCommandsConfig]):
    """Train and valid by ``which_split``; the test set is a folder of its own."""

    config_class = SpeechCommandsConfig
    slots = ("keyword",)

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """The twelve classes, in the published order."""
        return [list(CLASSES)]

    def utterances(self, split: str) -> list[Utterance]:
        """The test folder's files; train and valid are drawn, or each file once (``datarc``)."""
        if split == "test":
            return self._test()
        by_class = self._files_by_class(split)
        rng = np.random.default_rng([self.config.taskrc.seed, SPLITS.index(split)])
        if getattr(self.config.datarc, split) is Drawing.drawn:
            return self._drawn(by_class, rng)
        files = [utterance for utterances in by_class.values() for utterance in utterances]
        silences = round(np.mean([len(by_class[word]) for word in KEYWORDS]))
        return files + [self._silence(rng) for _ in range(silences)]

    def _drawn(
        self, by_class: dict[str, list[Utterance]], rng: np.random.Generator
    ) -> list[Utterance]:
        """Draw as many rows as there are files, noise files included: first a class of the twelve,
        then one of its files.

        This is SUPERB's weighted sampling with replacement, which balances the classes.
        """
        count = sum(map(len, by_class.values())) + len(self._noise())
        rows = []
        for number in rng.integers(len(CLASSES), size=count):
            name = CLASSES[number]
            if name == SILENCE:
                rows.append(self._silence(rng))
            else:
                rows.append(by_class[name][rng.integers(len(by_class[name]))])
        return rows

    def _silence(self, rng: np.random.Generator) -> Utterance:
        """One second from anywhere in one of the noise files, named like the published rows."""
        noise = self._noise()
        path, (frames, rate) = list(noise.items())[rng.integers(len(noise))]
        start = int(rng.integers(frames - rate + 1))
        name = f"temp/_background_noise_/{Path(path).stem}-{start}.wav"
        return Utterance(path, (SILENCE,), start, rate, name)

    def _noise(self) -> dict[str, tuple[int, int]]:
        """Length and rate of each noise file."""
        if hasattr(self, "_noise_files"):
            return self._noise_files
        self._noise_files: dict[str, tuple[int, int]] = {}
        for path in self._wavs(NOISE_FOLDER):
            try:
                frames, rate = length_and_rate(self.root / path)
                if frames < rate:
                    raise BadAudio("is shorter than the one second that _silence_ takes")
                self._noise_files[path] = frames, rate
            except BadAudio as error:
                self.bad_audio[self.root / path] = str(error)
        if not self._noise_files:
            self.report_bad_audio(skip=False)
        return self._noise_files

    def _files_by_class(self, split: str) -> dict[str, list[Utterance]]:
        by_class: dict[str, list[Utterance]] = {name: [] for name in (*KEYWORDS, UNKNOWN)}
        for folder in self._folders(TRAIN_FOLDER):
            if folder == Path(NOISE_FOLDER).name:
                continue
            name = folder if folder in KEYWORDS else UNKNOWN
            for path in self._wavs(f"{TRAIN_FOLDER}/{folder}"):
                if which_split(Path(path).name) == split:
                    by_class[name].append(Utterance(path, (name,)))
        for name, utterances in by_class.items():
            if not utterances:
                raise UserError(
                    f"{self.root / TRAIN_FOLDER}: the {split} split has no file of class {name}"
                )
        return by_class

    def _test(self) -> list[Utterance]:
        return [
            Utterance(path, (folder,))
            for folder in self._folders(TEST_FOLDER)
            for path in self._wavs(f"{TEST_FOLDER}/{folder}")
        ]

    def _folders(self, folder: str) -> list[str]:
        if not (self.root / folder).is_dir():
            raise UserError(
                f"{self.root / folder}: not found; datarc.root_path is the folder that "
                f"holds {TRAIN_FOLDER} and {TEST_FOLDER}"
            )
        return sorted(path.name for path in (self.root / folder).iterdir() if path.is_dir())

    def _wavs(self, folder: str) -> list[str]:
        wavs = sorted(f"{folder}/{path.name}" for path in (self.root / folder).glob("*.wav"))
        if not wavs:
            raise UserError(f"{self.root / folder}: holds no .wav file")
        return wavs
