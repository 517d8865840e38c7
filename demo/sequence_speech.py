"""Speak small corpora for the sequence tasks with espeak-ng, in the folder layouts of LibriSpeech
and Audio SNIPS.

python demo/sequence_speech.py --out demo/sequence_workspace/corpora

Voices and (LibriSpeech) sentences of the valid and test splits are never heard in train. The same
arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from demo.speaking.espeak import ACCENT, Speaker, at_least, new_corpus, speakers
from demo.speaking.sequence_texts import VALUES, Command, commands, sentences
from demo.speech import Clip, jobs_of, speak
from pipeline.errors import run
from pipeline.rows import SPLITS

FOLDERS = {"train": "train-clean-100", "valid": "dev-clean", "test": "test-clean"}
HELD_OUT = 0.1  # of the sentences, for valid, and as many for test
CHAPTER = 100  # utterances
# Audio SNIPS' speakers, each an espeak-ng variant of its own. Eight voices to learn from are few:
# these variants lie near one another, their formants within a tenth.
VOICES = {
    "train": {"Ivy": "m1", "Joanna": "m6", "Joey": "m4", "Justin": "paul", "Kendra": "quincy",
              "Kimberly": "Mike", "Matthew": "Nguyen", "Salli": "Alex"},
    "valid": {"Aditi": "m3", "Amy": "max", "Geraint": "pablo", "Nicole": "grandpa"},
    "test": {"Brian": "robert", "Emma": "Mr serious", "Raveena": "Storm", "Russell": "Mario"},
}  # fmt: skip


def main() -> None:
    """Speak both corpora."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the two corpora")
    sizes = {"type": at_least(1), "nargs": 3, "metavar": ("TRAIN", "VALID", "TEST")}
    parser.add_argument("--sentences", default=[6000, 300, 400], help="utterances", **sizes)
    parser.add_argument("--commands", default=[5000, 300, 400], help="utterances", **sizes)
    parser.add_argument("--seed", type=at_least(0), default=1)
    parser.add_argument(
        "--workers", type=at_least(1), default=os.cpu_count(), help="does not change the result"
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    for corpus, write, counts in (
        ("librispeech", speak_sentences, arguments.sentences),
        ("audio_snips", speak_slots, arguments.commands),
    ):
        about = {"seed": arguments.seed, "utterances": counts}
        with new_corpus(arguments.out / corpus, about) as folder:
            by_split = dict(zip(SPLITS, counts, strict=True))
            write(folder, by_split, arguments.seed, arguments.workers)
    print(
        f"{time.monotonic() - start:.0f} s; next: preprocess/runner.py --action generate_manifest"
    )


def speak_sentences(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write LibriSpeech's folders. No sentence is in two splits."""
    everything = np.random.default_rng((seed, 5)).permutation(sentences())
    held_out = max(1, round(HELD_OUT * len(everything)))
    own = {
        "valid": everything[:held_out],
        "test": everything[held_out : 2 * held_out],
        "train": everything[2 * held_out :],
    }
    reader = 0
    for split, voices in speakers(seed).items():
        clips: dict[Speaker, list[Clip]] = {}
        transcripts: dict[Path, list[str]] = {}
        for index, speaker in enumerate(voices):
            reader += 1
            clips[speaker] = []
            for number, turn in enumerate(range(index, counts[split], len(voices))):
                chapter, line = divmod(number, CHAPTER)
                folder = Path(FOLDERS[split], str(reader), str(chapter + 1))
                name = f"{reader}-{chapter + 1}-{line:04d}"
                text = str(own[split][turn % len(own[split])])
                clips[speaker].append(Clip(str(folder / f"{name}.flac"), text))
                path = out / folder / f"{reader}-{chapter + 1}.trans.txt"
                transcripts.setdefault(path, []).append(f"{name} {text.upper()}\n")
        _write_texts(transcripts)
        speak(jobs_of(out, clips, (seed, 4)), f"sentences, {split}", workers)


def speak_slots(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write Audio SNIPS' folders. All patterns are equally frequent."""
    patterns = commands()
    lines = []
    for index, (split, voices) in enumerate(VOICES.items()):
        rng = np.random.default_rng((seed, 7, index))
        own = [snips_speaker(name, variant, rng) for name, variant in voices.items()]
        clips: dict[Speaker, list[Clip]] = {speaker: [] for speaker in own}
        for number in range(counts[split]):
            pattern = patterns[number % len(patterns)]
            command = pattern[rng.integers(len(pattern))]
            speaker = own[rng.integers(len(own))]
            name = f"{speaker.name}-snips-{split}-{number}"
            path = f"{split}/{speaker.name}/{name}.wav"
            clips[speaker].append(Clip(path, " ".join(command.words)))
            lines.append(iob_line(name, command))
        speak(jobs_of(out, clips, (seed, 6)), f"commands, {split}", workers)
    slots = [f"{name}\n" for name in ("O", *VALUES)]
    _write_texts({out / "all.iob.snips.txt": lines, out / "slots.txt": slots})


def snips_speaker(name: str, variant: str, rng: np.random.Generator) -> Speaker:
    """One of Audio SNIPS' speakers."""
    return Speaker(
        name, f"{ACCENT}+{variant}", int(rng.integers(185, 216)), int(rng.integers(46, 55))
    )


def iob_line(name: str, command: Command) -> str:
    """A line of all.iob.snips.txt."""
    words, tags = " ".join(command.words), " ".join(command.tags)
    return f"{name} BOS {words} EOS\tO {tags} {command.intent}\n"


def _write_texts(lines: dict[Path, list[str]]) -> None:
    for path, text in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(text), encoding="utf-8")


if __name__ == "__main__":
    run(main)
