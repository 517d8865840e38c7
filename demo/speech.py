"""Speak the demo's commands with espeak-ng, in the folder layout of Fluent Speech Commands.

python demo/speech.py --out demo/workspace/corpora

Voices of the valid and test splits are never heard in train. The same arguments give the same
bytes.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from demo.speaking.texts import intent_commands
from demo.speaking.voices import Clips, speak, speak_corpora, speakers
from pipeline.errors import run

COLUMNS = ["", "path", "speakerId", "transcription", "action", "object", "location"]


def main() -> None:
    corpus = "commands", [2000, 250, 600], speak_commands
    speak_corpora(__doc__, {"fluent_commands": corpus})


def speak_commands(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write Fluent Speech Commands' csv files and wavs. Triples are equally frequent, and so are
    their phrasings and the split's speakers.
    """
    by_triple: dict[tuple[str, ...], list] = {}
    for command in intent_commands():
        by_triple.setdefault(command[1:], []).append(command)
    voices = speakers(seed)
    (out / "data").mkdir(parents=True)
    for index, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, 3, index))
        clips: Clips = {speaker: {} for speaker in voices[split]}
        with open(out / "data" / f"{split}_data.csv", "w", encoding="utf-8", newline="") as handle:
            table = csv.writer(handle, lineterminator="\n")
            table.writerow(COLUMNS)
            triples = [list(by_triple)[number % len(by_triple)] for number in range(count)]
            for number, turn in enumerate(rng.permutation(count)):
                phrasings = by_triple[triples[turn]]
                command = phrasings[turn // len(by_triple) % len(phrasings)]
                speaker = voices[split][number % len(voices[split])]
                path = f"wavs/speakers/{speaker.name}/{split}-{number:05d}.wav"
                clips[speaker][path] = command[0]
                table.writerow([number, path, speaker.name, *command])
        speak(out, clips, (seed, 1), f"commands, {split}", workers)


if __name__ == "__main__":
    run(main)
