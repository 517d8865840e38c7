"""Keyword spotting on Speech Commands. v0.01: ten keywords, ``_unknown_`` and ``_silence_``, with
SUPERB's splits. v0.02: the same classes or 35 words, with the splits of its lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import text_lines
from pipeline.rows import SPLITS
from preprocess.actions.config import Config, DataConfig
from preprocess.actions.manifest import first_few
from preprocess.preprocessor import Preprocessor, Utterance
from preprocess.speech2unit.audio import BadAudio, length_and_rate

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
CLASSES = (*KEYWORDS, UNKNOWN, SILENCE)  # the label is the index
WORDS = (  # the words of v0.02; v0.01 has 30 of them
    *KEYWORDS, "backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward",
    "four", "happy", "house", "learn", "marvin", "nine", "one", "seven", "sheila", "six", "three",
    "tree", "two", "visual", "wow", "zero",
)  # fmt: skip
TRAIN_FOLDER, TEST_FOLDER = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
NOISE = "_background_noise_"
NOISE_FOLDER = f"{TRAIN_FOLDER}/{NOISE}"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}  # part of v0.02
MAX_WAVS_PER_CLASS = 2**27 - 1


def which_split(file_name: str) -> str | None:
    """Return the split by the dataset's rule, which keeps a speaker in one split, or None if it is
    neither train nor valid. ``a6d586b7_nohash_4.wav`` is a file of the speaker a6d586b7.
    """
    speaker = Path(file_name).name.partition("_nohash_")[0]
    digest = int(hashlib.sha1(speaker.encode("utf-8")).hexdigest(), 16)
    percentage = (digest % (MAX_WAVS_PER_CLASS + 1)) * (100.0 / MAX_WAVS_PER_CLASS)
    if percentage < 10:
        return "valid"
    return None if percentage < 20 else "train"


Drawing = Enum("Drawing", ["drawn", "each_once"])  # how the rows of a split are chosen


@dataclass
class SpeechCommandsData(DataConfig):
    classes: int = 12
    train: Drawing = Drawing.drawn
    valid: Drawing = Drawing.drawn


@dataclass
class SpeechCommandsConfig(Config):
    datarc: SpeechCommandsData = field(default_factory=SpeechCommandsData)


class SpeechCommands(Preprocessor[SpeechCommandsConfig]):
    """v0.01: ``which_split`` divides train and valid, and the test set is a separate folder. v0.02:
    one folder with two lists, which name the files of valid and test.
    """

    config_class = SpeechCommandsConfig
    slots = ("keyword",)

    @property
    def classes(self) -> tuple[str, ...]:
        """The twelve classes in the published order, or the 35 words sorted."""
        return CLASSES if self.config.datarc.classes == len(CLASSES) else tuple(sorted(WORDS))

    def label_names(self, train: Sequence[Utterance]) -> list[list[str]]:
        """Return the classes."""
        return [list(self.classes)]

    def utterances(self, split: str) -> list[Utterance]:
        """Return the rows of a split. Test contains every file once; train and valid are drawn or
        contain every file once (``datarc``). v0.02 has no ``_silence_`` test files: they are drawn.
        """
        lists, classes = self._lists(), self.config.datarc.classes
        if classes not in (len(CLASSES), lists and len(WORDS)):
            expected = f"expected 12, or 35 with v0.02's layout, which has {LISTS['test']}"
            raise UserError(f"{self.root}: datarc.classes={classes}: {expected}")
        if split == "test" and lists is None:
            return self._test_set()
        wavs = self._wavs(TRAIN_FOLDER if lists is None else ".")
        noises = wavs.pop(NOISE, [])
        noise = self._noise(noises) if SILENCE in self.classes else {}
        by_class = self._by_class(wavs, split, lists)
        rng = np.random.default_rng([self.config.taskrc.seed, SPLITS.index(split)])
        if split != "test" and getattr(self.config.datarc, split) is Drawing.drawn:
            # SUPERB balances the classes by sampling with replacement: there are as many rows as
            # files, noise files included; each row draws first a class, then one of its files
            count = sum(map(len, by_class.values())) + len(noise)
            drawn = [self.classes[n] for n in rng.integers(len(self.classes), size=count)]
            return [
                _silence(noise, rng) if name == SILENCE
                else by_class[name][rng.integers(len(by_class[name]))]
                for name in drawn
            ]  # fmt: skip
        files = [utterance for utterances in by_class.values() for utterance in utterances]
        silences = round(np.mean([len(by_class[word]) for word in KEYWORDS])) if noise else 0
        if split == "test" and noise:
            unknown = f"{len(by_class[UNKNOWN])} files are {UNKNOWN}"
            self.say(f"test: {silences} rows of {SILENCE} drawn from background noise; {unknown}")
        return files + [_silence(noise, rng) for _ in range(silences)]

    def _lists(self) -> dict[str, str] | None:
        """Return the split of each file in v0.02's lists, or None for v0.01's two folders."""
        if (self.root / TRAIN_FOLDER).is_dir() or not (self.root / LISTS["test"]).exists():
            return None
        lines = {split: text_lines(self.root / LISTS[split], "not found") for split in LISTS}
        return {line.strip(): split for split in lines for line in lines[split] if line.strip()}

    def _wavs(self, top: str) -> dict[str, list[str]]:
        """Return folder -> files, for the folders in ``top``."""
        root = self.root / top
        if not root.is_dir():
            layout = f"{TRAIN_FOLDER} and {TEST_FOLDER}, or v0.02's words and {LISTS['test']}"
            raise UserError(f"{root}: not found; datarc.root_path is the folder with {layout}")
        wavs = {}
        for folder in self.listing.files(root, "*/", ""):
            paths = self.listing.files(folder, "*", ".wav")
            if not paths:
                raise UserError(f"{folder}: contains no .wav file; add some, or remove the folder")
            wavs[folder.name] = [path.relative_to(self.root).as_posix() for path in paths]
        return wavs

    def _noise(self, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return length and rate of each usable noise file."""
        noise: dict[str, tuple[int, int]] = {}
        reason = "none exists"
        for path in paths:
            try:
                frames, rate = length_and_rate(self.root / path)
                if frames < rate:
                    raise BadAudio("is shorter than the one second that _silence_ takes")
                noise[path] = frames, rate
            except BadAudio as error:
                self.bad_audio[self.root / path] = reason = str(error)
        if not noise:
            raise UserError(f"{self.root}: no usable .wav file in {NOISE} ({reason})")
        return noise

    def _by_class(
        self, wavs: Mapping[str, Sequence[str]], split: str, lists: Mapping[str, str] | None
    ) -> dict[str, list[Utterance]]:
        """Return the utterances of the split's files by class."""
        by_class: dict[str, list[Utterance]] = {c: [] for c in self.classes if c != SILENCE}
        if strange := [folder for folder in wavs if folder not in WORDS]:
            if UNKNOWN not in by_class:
                raise UserError(f"{self.root / strange[0]}: not one of the {len(WORDS)} words")
            if split == SPLITS[0]:
                self.say(f"not Speech Commands words, read as {UNKNOWN}: {first_few(strange)}")
        missing = {file for file, listed in (lists or {}).items() if listed == split}
        for word, paths in wavs.items():
            for path in paths:
                file = f"{word}/{Path(path).name}"  # as the lists name it
                missing.discard(file)
                if split == (which_split(path) if lists is None else lists.get(file, "train")):
                    label = word if word in by_class else UNKNOWN
                    by_class[label].append(Utterance(path, (label,)))
        self.bad_audio.update({self.root / file: "does not exist" for file in sorted(missing)})
        if empty := [name for name, utterances in by_class.items() if not utterances]:
            raise UserError(f"{self.root}: the {split} split has no file of class {empty[0]}")
        return by_class

    def _test_set(self) -> list[Utterance]:
        wavs = self._wavs(TEST_FOLDER)
        if missing := set(CLASSES) - wavs.keys():
            self.say(f"warning, test has no folder of {', '.join(sorted(missing))}")
        return [Utterance(path, (folder,)) for folder, paths in wavs.items() for path in paths]


def _silence(noise: Mapping[str, tuple[int, int]], rng: np.random.Generator) -> Utterance:
    """Return one second from a random place in a random noise file, named as in published rows."""
    path, (frames, rate) = list(noise.items())[rng.integers(len(noise))]
    start = int(rng.integers(frames - rate + 1))
    name = f"temp/{NOISE}/{Path(path).stem}-{start}.wav"
    return Utterance(path, (SILENCE,), start, rate, name)
