"""Speak the demo's commands with espeak-ng, in the folder layout of Fluent Speech Commands.

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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soxr
from tqdm import tqdm

from demo.speaking.espeak import (
    NOISE_COLOURS,
    SAMPLE_RATE,
    Espeak,
    Speaker,
    at_least,
    at_level,
    coloured_noise,
    new_corpus,
    speakers,
    trimmed,
    write_audio,
)
from demo.speaking.texts import commands
from pipeline.errors import run
from pipeline.rows import SPLITS

SPEECH_LEVEL = (-22.0, -18.0)  # dB relative to full scale
NOISE_BELOW_SPEECH = (44.0, 48.0)  # dB


class Clip(NamedTuple):
    """One file to speak."""

    path: str
    text: str


class Job(NamedTuple):
    """All clips of one speaker in one corpus: what a worker process speaks before it ends."""

    folder: Path
    speaker: Speaker
    clips: list[Clip]
    seed: tuple[int, ...]


def main() -> None:
    """Speak the corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpus")
    sizes = {"type": at_least(1), "nargs": 3, "metavar": ("TRAIN", "VALID", "TEST")}
    parser.add_argument("--commands", default=[2000, 250, 600], help="utterances", **sizes)
    parser.add_argument("--seed", type=at_least(0), default=1)
    parser.add_argument(
        "--workers", type=at_least(1), default=os.cpu_count(), help="does not change the result"
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    about = {"seed": arguments.seed, "utterances": arguments.commands}
    with new_corpus(arguments.out / "fluent_commands", about) as folder:
        by_split = dict(zip(SPLITS, arguments.commands, strict=True))
        speak_commands(folder, by_split, arguments.seed, arguments.workers)
    print(
        f"{time.monotonic() - start:.0f} s; next: preprocess/runner.py --action generate_manifest"
    )


def speak_commands(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write Fluent Speech Commands' csv files and wavs. Triples are equally frequent, and so are
    their phrasings and the split's speakers.
    """
    by_triple: dict[tuple[str, ...], list] = {}
    for command in commands():
        by_triple.setdefault(command[1:], []).append(command)
    jobs = []
    voices = speakers(seed)
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
                speaker = voices[split][number % len(voices[split])]
                path = f"wavs/speakers/{speaker.name}/{split}-{number:05d}.wav"
                clips[speaker].append(Clip(path, command.text))
                table.writerow([number, path, speaker.name, *command])
        jobs += jobs_of(out, clips, (seed, 1))
    speak(jobs, "commands", workers)


def jobs_of(out: Path, clips: dict[Speaker, list[Clip]], seed: tuple[int, int]) -> list[Job]:
    """A job for each speaker who has something to say."""
    return [
        Job(
            out,
            speaker,
            said,
            (*seed, *speaker.name.encode()),
        )
        for speaker, said in clips.items()
        if said
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
        write_audio(job.folder / clip.path, recorded(speech, rng))


def recorded(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ``speech`` at a random level between two short pauses, over noise of a random colour
    and level.
    """
    before, after = (int(rng.uniform(0.03, 0.12) * SAMPLE_RATE) for _ in range(2))
    decibels = rng.uniform(*SPEECH_LEVEL)
    noise = coloured_noise(rng, rng.choice(list(NOISE_COLOURS)), before + len(speech) + after)
    noise = at_level(noise, decibels - rng.uniform(*NOISE_BELOW_SPEECH))
    return np.pad(at_level(speech, decibels), (before, after)) + noise


if __name__ == "__main__":
    run(main)
