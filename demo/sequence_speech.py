"""Speak small corpora for the sequence tasks with espeak-ng, in the folder layouts of LibriSpeech
and Audio SNIPS.

python demo/sequence_speech.py --out demo/sequence_workspace/corpora

Voices and (LibriSpeech) sentences of the valid and test splits are never heard in train. The same
arguments give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demo.speaking.texts import VALUES, SlotCommand, sentences, slot_commands
from demo.speaking.voices import ACCENT, Clips, Speaker, speak, speak_corpora, speakers
from pipeline.errors import run

FOLDERS = {"train": "train-clean-100", "valid": "dev-clean", "test": "test-clean"}
HELD_OUT = 0.1  # of the sentences, for valid, and as many for test
CHAPTER = 100  # utterances
# Audio SNIPS' speakers, with an espeak-ng variant for each. Eight voices to learn from are few:
# these variants are near one another, their formants within a tenth.
VOICES = {
    "train": {"Ivy": "m1", "Joanna": "m6", "Joey": "m4", "Justin": "paul", "Kendra": "quincy",
              "Kimberly": "Mike", "Matthew": "Nguyen", "Salli": "Alex"},
    "valid": {"Aditi": "m3", "Amy": "max", "Geraint": "pablo", "Nicole": "grandpa"},
    "test": {"Brian": "robert", "Emma": "Mr serious", "Raveena": "Storm", "Russell": "Mario"},
}  # fmt: skip


def main() -> None:
    corpora = {
        "librispeech": ("sentences", [6000, 300, 400], speak_sentences),
        "audio_snips": ("commands", [5000, 300, 400], speak_slots),
    }
    speak_corpora(__doc__, corpora)


def speak_sentences(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write LibriSpeech's folders. No sentence is in two splits."""
    shuffled = np.random.default_rng((seed, 5)).permutation(sentences())
    held_out = max(1, round(HELD_OUT * len(shuffled)))
    by_split = {
        "valid": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
        "train": shuffled[2 * held_out :],
    }
    reader = 0
    for split, voices in speakers(seed).items():
        clips: Clips = {}
        transcripts: dict[Path, list[str]] = {}
        for index, speaker in enumerate(voices):
            reader += 1
            clips[speaker] = {}
            for number, turn in enumerate(range(index, counts[split], len(voices))):
                chapter, line = divmod(number, CHAPTER)
                folder = Path(FOLDERS[split], str(reader), str(chapter + 1))
                name = f"{reader}-{chapter + 1}-{line:04d}"
                text = str(by_split[split][turn % len(by_split[split])])
                clips[speaker][str(folder / f"{name}.flac")] = text
                path = out / folder / f"{reader}-{chapter + 1}.trans.txt"
                transcripts.setdefault(path, []).append(f"{name} {text.upper()}\n")
        _write_texts(transcripts)
        speak(out, clips, (seed, 4), f"sentences, {split}", workers)


def speak_slots(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write Audio SNIPS' folders. All patterns are equally frequent."""
    patterns = slot_commands()
    lines = []
    for index, (split, voices) in enumerate(VOICES.items()):
        rng = np.random.default_rng((seed, 7, index))
        clips: Clips = {}
        for name, variant in voices.items():
            pace, pitch = int(rng.integers(185, 216)), int(rng.integers(46, 55))
            clips[Speaker(name, f"{ACCENT}+{variant}", pace, pitch)] = {}
        for number in range(counts[split]):
            pattern = patterns[number % len(patterns)]
            command = pattern[rng.integers(len(pattern))]
            speaker = list(clips)[rng.integers(len(clips))]
            name = f"{speaker.name}-snips-{split}-{number}"
            clips[speaker][f"{split}/{speaker.name}/{name}.wav"] = " ".join(command.words)
            lines.append(iob_line(name, command))
        speak(out, clips, (seed, 6), f"commands, {split}", workers)
    slots = [f"{name}\n" for name in ("O", *VALUES)]
    _write_texts({out / "all.iob.snips.txt": lines, out / "slots.txt": slots})


def iob_line(name: str, command: SlotCommand) -> str:
    """A line of all.iob.snips.txt."""
    words, tags = " ".join(command.words), " ".join(command.tags)
    return f"{name} BOS {words} EOS\tO {tags} {command.intent}\n"


def _write_texts(lines: dict[Path, list[str]]) -> None:
    for path, text in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(text), encoding="utf-8")


if __name__ == "__main__":
    run(main)
