"""Write tiny corpora in the real layouts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

from preprocess.speech_commands.preprocessor import (
    CLASSES,
    LISTS,
    NOISE_FOLDER,
    TEST_FOLDER,
    TRAIN_FOLDER,
    WORDS,
)

SPEAKERS = {"train": "024d32b9", "valid": "a6d586b7"}  # the dataset's rule puts them there


def tone(seconds: float, hertz: float, rate: int = 16_000) -> np.ndarray:
    """Return (T,) samples of a tone with harmonics and a little fixed noise."""
    time = np.arange(int(seconds * rate)) / rate
    noise = 0.002 * np.random.default_rng(int(hertz)).standard_normal(len(time))
    return 0.1 * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8)) + noise


def write(path: Path, samples: np.ndarray, rate: int = 16_000) -> None:
    """Write a 16-bit wav; make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")


def speech_commands(root: Path) -> Path:
    """Write two files per class and split. The unknown word is ``bed``."""
    for number, name in enumerate(CLASSES[:-1]):
        word = "bed" if name == "_unknown_" else name
        for take in range(2):
            samples = tone(1.0, 100 + 40 * number + take)
            for speaker in SPEAKERS.values():
                write(root / TRAIN_FOLDER / word / f"{speaker}_nohash_{take}.wav", samples)
            write(root / TEST_FOLDER / name / f"{take}.wav", samples)
    write(root / NOISE_FOLDER / "rain.wav", tone(3.0, 50))
    write(root / TEST_FOLDER / "_silence_" / "0.wav", tone(1.0, 51))
    return root


def speech_commands_v002(root: Path) -> Path:
    """Write the corpus as it unpacks. Per word: two files for train, one in each list."""
    for number, word in enumerate(WORDS):
        for take in range(4):
            write(root / word / f"a_nohash_{take}.wav", tone(0.2, 100 + 9 * number + take))
    write(root / "_background_noise_" / "rain.wav", tone(3.0, 50))
    for take, name in enumerate(LISTS.values()):
        (root / name).write_text("".join(f"{word}/a_nohash_{take}.wav\n" for word in WORDS))
    (root / "README.md").touch()
    return root


FLUENT = {
    "train": [("start", "lamp", "none"), ("stop", "heat", "kitchen"), ("start", "heat", "none")],
    "valid": [("stop", "lamp", "kitchen")],
    "test": [("start", "lamp", "kitchen"), ("stop", "heat", "none")],
}


def fluent_commands(root: Path, splits: dict[str, list[tuple[str, ...]]] = FLUENT) -> Path:
    """Write the csv files, and one wav per row."""
    (root / "data").mkdir(parents=True)
    for split, rows in splits.items():
        with open(root / "data" / f"{split}_data.csv", "w", newline="") as handle:
            table = csv.writer(handle)
            header = ["", "path", "speakerId", "transcription", "action", "object", "location"]
            table.writerow(header)
            for number, labels in enumerate(rows):
                path = f"wavs/speakers/{split}/{number}.wav"
                write(root / path, tone(0.5 + 0.1 * number, 90 + 30 * number))
                table.writerow([number, path, split, " ".join(labels), *labels])
    return root


LIBRISPEECH = {
    "train-clean-100": ["THE CAT'S HAT", "A BAD CHEST", "HE HAD IT"],
    "dev-clean": ["THE HAT"],
    "test-clean": ["THAT'S IT", "HE ATE"],
}


def librispeech(root: Path, splits: dict[str, list[str]] = LIBRISPEECH) -> Path:
    """Write one reader per split, and two utterances per chapter."""
    for reader, (folder, texts) in enumerate(splits.items(), start=19):
        for number, text in enumerate(texts):
            chapter = f"{reader}-{198 + number // 2}"
            chapter_folder = root / folder / str(reader) / chapter.split("-")[1]
            name = f"{chapter}-{number % 2:04d}"
            write(chapter_folder / f"{name}.flac", tone(0.5 + 0.1 * number, 90 + 30 * number))
            with open(chapter_folder / f"{chapter}.trans.txt", "a", encoding="utf-8") as handle:
                handle.write(f"{name} {text}\n")
    return root


AUDIO_SNIPS = (
    ("Ivy-snips-train-0", "play Drake", "O B-artist", "PlayMusic"),
    ("Joey-snips-train-1", "rate the new book", "O O B-object_name I-object_name", "RateBook"),
    ("Amy-snips-valid-0", "play", "O", "PlayMusic"),
    ("Emma-snips-test-0", "rate a book", "O O B-object_name", "RateBook"),
)


def audio_snips(
    root: Path, lines: tuple[tuple[str, str, str, str], ...] = AUDIO_SNIPS, more: str = ""
) -> Path:
    """Write one wav per line of (utterance, words, tags, intent). ``more``: more lines of text."""
    root.mkdir(parents=True)
    text = ""
    for number, (name, words, tags, intent) in enumerate(lines):
        speaker, _, split, _ = name.split("-")
        path = root / split / speaker / f"{name}.wav"
        write(path, tone(0.5 + 0.1 * number, 90 + 30 * number))
        text += f"{name} BOS {words} EOS\tO {tags} {intent}\n"
    (root / "all.iob.snips.txt").write_text(text + more, encoding="utf-8")
    (root / "slots.txt").write_text("O\nartist\nobject_name\n")
    return root
