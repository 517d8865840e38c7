"""Speak the demo's two corpora with espeak-ng, in the folder layout of Speech Commands and Fluent
Speech Commands.

python demo/speech.py --out demo/workspace/corpora

Voices of the valid and test splits are never heard in train. The same arguments give the same
bytes.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soxr
from tqdm import tqdm

from demo.espeak import Espeak
from demo.new_corpus import at_least, new_corpus
from demo.sound import (
    NOISE_COLOURS,
    SAMPLE_RATE,
    amplitude,
    at_level,
    coloured_noise,
    trimmed,
    write_audio,
    write_wav,
)
from demo.texts import OTHER_WORDS, commands
from demo.voices import Speaker, speakers
from pipeline.errors import run
from pipeline.rows import SPLITS
from preprocess.speech_commands.corpus import (
    KEYWORDS,
    NOISE_FOLDER,
    SILENCE,
    TEST_FOLDER,
    TRAIN_FOLDER,
    UNKNOWN,
)

SPEECH_LEVEL = (-22.0, -18.0)  # dB relative to full scale
NOISE_BELOW_SPEECH = (44.0, 48.0)  # dB
NOISE_LEVEL = (-68.0, -62.0)  # dB relative to full scale, of background noise and test silence
NOISE_SECONDS = 60


class Clip(NamedTuple):
    """One file to speak. ``seconds``: the clip's fixed length, or None for the sentence with short
    pauses.
    """

    path: str
    text: str
    seconds: float | None


class Job(NamedTuple):
    """All clips of one speaker in one corpus: what a worker process speaks before it ends."""

    folder: Path
    speaker: Speaker
    clips: list[Clip]
    seed: tuple[int, ...]


def main() -> None:
    """Speak both corpora."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the two corpora")
    sizes = {"type": at_least(1), "nargs": 3, "metavar": ("TRAIN", "VALID", "TEST")}
    parser.add_argument(
        "--keywords", default=[4000, 300, 480], help="utterances in 12 classes", **sizes
    )
    parser.add_argument("--commands", default=[8000, 250, 400], help="utterances", **sizes)
    parser.add_argument("--seed", type=at_least(0), default=1)
    parser.add_argument(
        "--workers", type=at_least(1), default=os.cpu_count(), help="does not change the result"
    )
    arguments = parser.parse_args()
    voices = speakers(arguments.seed)
    start = time.monotonic()
    for corpus, write, counts in (
        ("speech_commands", speak_keywords, arguments.keywords),
        ("fluent_commands", speak_commands, arguments.commands),
    ):
        with new_corpus(arguments.out / corpus, arguments.seed, counts) as folder:
            by_split = dict(zip(SPLITS, counts, strict=True))
            write(folder, voices, by_split, arguments.seed, arguments.workers)
    print(
        f"{time.monotonic() - start:.0f} s; next: preprocess/runner.py --action generate_manifest"
    )


def speak_keywords(
    out: Path, voices: dict[str, list[Speaker]], counts: dict[str, int], seed: int, workers: int
) -> None:
    """Write Speech Commands v0.01's folders. One in twelve is silence: crops in train and valid,
    files in test.
    """
    jobs = []
    for split, count in counts.items():
        clips: dict[Speaker, list[Clip]] = {speaker: [] for speaker in voices[split]}
        spoken: Counter[tuple[Speaker, str]] = Counter()
        classes = len(KEYWORDS) + 1
        for number in range(count * classes // (classes + 1)):
            turn, kind = divmod(number, classes)
            speaker = voices[split][turn % len(voices[split])]
            word = KEYWORDS[kind] if kind < len(KEYWORDS) else OTHER_WORDS[turn % len(OTHER_WORDS)]
            name = f"{speaker.keyword_id}_nohash_{spoken[speaker, word]}.wav"
            spoken[speaker, word] += 1
            path = f"{TRAIN_FOLDER}/{word}/{name}"
            if split == "test":
                unknown = f"{TEST_FOLDER}/{UNKNOWN}/{word}_{name}"
                path = f"{TEST_FOLDER}/{word}/{name}" if word in KEYWORDS else unknown
            clips[speaker].append(Clip(path, word, 1.0))
        jobs += jobs_of(out, clips, (seed, 0))
    write_noise(out, counts["test"] // 12, seed)
    speak(jobs, "keywords", workers)


def write_noise(out: Path, silences: int, seed: int) -> None:
    """Background noise to crop, and the test split's silences, which are noise of their own."""
    rng = np.random.default_rng((seed, 2))
    (out / NOISE_FOLDER).mkdir(parents=True)
    (out / TEST_FOLDER / SILENCE).mkdir(parents=True)
    samples = NOISE_SECONDS * SAMPLE_RATE
    swelling = amplitude(np.linspace(*NOISE_LEVEL, samples))  # crops find every level
    for colour in NOISE_COLOURS:
        noise = coloured_noise(rng, colour, samples)
        write_wav(out / NOISE_FOLDER / f"{colour}_noise.wav", noise * swelling)
    for number in range(silences):
        noise = coloured_noise(rng, rng.choice(list(NOISE_COLOURS)), SAMPLE_RATE)
        path = out / TEST_FOLDER / SILENCE / f"{number}.wav"
        write_wav(path, at_level(noise, rng.uniform(*NOISE_LEVEL)))


def speak_commands(
    out: Path, voices: dict[str, list[Speaker]], counts: dict[str, int], seed: int, workers: int
) -> None:
    """Write Fluent Speech Commands' csv files and wavs. Triples are equally frequent, as are their
    phrasings.
    """
    by_triple: dict[tuple[str, ...], list] = {}
    for command in commands():
        by_triple.setdefault(command[1:], []).append(command)
    jobs = []
    (out / "data").mkdir(parents=True)
    for index, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, 3, index))
        clips: dict[Speaker, list[Clip]] = {speaker: [] for speaker in voices[split]}
        with open(out / "data" / f"{split}_data.csv", "w", encoding="utf-8", newline="") as handle:
            table = csv.writer(handle, lineterminator="\n")
            table.writerow(
                ["", "path", "speakerId", "transcription", "action", "object", "location"]
            )
            triples = [list(by_triple)[number % len(by_triple)] for number in range(count)]
            for number, turn in enumerate(rng.permutation(count)):
                phrasings = by_triple[triples[turn]]
                command = phrasings[turn // len(by_triple) % len(phrasings)]
                speaker = voices[split][rng.integers(len(voices[split]))]
                path = f"wavs/speakers/{speaker.intent_id}/{split}-{number:05d}.wav"
                clips[speaker].append(Clip(path, command.text, None))
                table.writerow([number, path, speaker.intent_id, *command])
        jobs += jobs_of(out, clips, (seed, 1))
    speak(jobs, "commands", workers)


def jobs_of(out: Path, clips: dict[Speaker, list[Clip]], seed: tuple[int, int]) -> list[Job]:
    """A job for each speaker who has something to say."""
    return [
        Job(out, speaker, own, (*seed, int(speaker.keyword_id, 16)))
        for speaker, own in clips.items()
        if own
    ]


def speak(jobs: Sequence[Job], title: str, workers: int) -> None:
    """Run the jobs, each in a process of its own: espeak-ng's state must not carry over from
    speaker to speaker.
    """
    for job in jobs:
        for folder in {(job.folder / clip.path).parent for clip in job.clips}:
            folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(workers, maxtasksperchild=1) as pool:
        for _ in tqdm(
            pool.imap_unordered(_run, jobs), title, len(jobs), unit="voice", disable=None
        ):
            pass


def _run(job: Job) -> None:
    rng = np.random.default_rng(job.seed)
    espeak = Espeak()
    espeak.set_voice(job.speaker.voice)
    for clip in job.clips:
        spoken = espeak.speak(
            clip.text,
            rate=round(job.speaker.rate * rng.uniform(0.9, 1.1)),
            pitch=int(np.clip(job.speaker.pitch + rng.integers(-4, 5), 0, 100)),
            pitch_range=int(rng.integers(20, 46)),
        )
        speech = soxr.resample(trimmed(spoken), espeak.sample_rate, SAMPLE_RATE)
        write_audio(job.folder / clip.path, recorded(speech, clip.seconds, rng))


def recorded(speech: np.ndarray, seconds: float | None, rng: np.random.Generator) -> np.ndarray:
    """Place ``speech`` at a random level between two pauses, over noise of a random colour and
    level.
    """
    if seconds is None:
        before, after = (int(rng.uniform(0.03, 0.12) * SAMPLE_RATE) for _ in range(2))
    else:
        room = int(seconds * SAMPLE_RATE)
        speech = speech[:room]
        before = int(rng.integers(room - len(speech) + 1))
        after = room - len(speech) - before
    decibels = rng.uniform(*SPEECH_LEVEL)
    noise = coloured_noise(rng, rng.choice(list(NOISE_COLOURS)), before + len(speech) + after)
    noise = at_level(noise, decibels - rng.uniform(*NOISE_BELOW_SPEECH))
    return np.pad(at_level(speech, decibels), (before, after)) + noise


if __name__ == "__main__":
    run(main)
