"""Synthesise small corpora with espeak-ng, in the folder layouts of Fluent Speech Commands,
LibriSpeech and Audio SNIPS.

python demo/speech.py --out demo/workspace/corpora
python demo/speech.py --corpora librispeech audio_snips --out demo/sequence_workspace/corpora

Train contains no voice and no LibriSpeech sentence of valid or test. The same arguments give the
same bytes. We wrote the texts: commands in the label scheme of Fluent Speech Commands (6 actions,
14 objects, 4 locations, 31 meaningful triples), commands with slots similar to SNIPS, and matrix
sentences as in hearing tests. These take one word from each column, so that the grammar does not
help to guess a word.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from itertools import product
from pathlib import Path

import numpy as np

from demo.speaking import ACCENT, Clips, Speaker, new_corpus, speak, speakers
from pipeline.errors import UserError, run
from pipeline.rows import SPLITS

NONE = ("none",)
ROOMS = (*NONE, "kitchen", "bedroom", "washroom")
ON, OFF = ("start the {}", "{} on please"), ("kill the {}", "{} off now")
UP, DOWN = ("raise the {}", "more {} please"), ("drop the {}", "less {} now")
BRING = ("fetch the {}", "bring me my {}", "I need {}")
LANGUAGE = ("speak {}", "change to {}", "let us use {}")
INTENTS = (  # action, patterns, objects, locations
    ("activate", ON, ("lights",), ROOMS),
    ("activate", ON, ("lamp", "music"), NONE),
    ("deactivate", OFF, ("lights",), ROOMS),
    ("deactivate", OFF, ("lamp", "music"), NONE),
    ("increase", UP, ("heat",), ROOMS),
    ("increase", UP, ("volume",), NONE),
    ("decrease", DOWN, ("heat",), ROOMS),
    ("decrease", DOWN, ("volume",), NONE),
    ("bring", BRING, ("newspaper", "juice", "socks", "shoes"), NONE),
    ("change language", LANGUAGE, ("Chinese", "Korean", "English", "German"), NONE),
    ("change language", ("use another language", "open the language menu", "pick a new language"),
     NONE, NONE),
)  # fmt: skip
INTENT_TABLE = ["", "path", "speakerId", "transcription", "action", "object", "location"]

COLUMNS = (
    ("Alan", "Lucy", "Peter", "Rachel", "Steven", "Nina"),
    ("bought", "gives", "can't find", "wants", "holds", "sees"),
    ("two", "seven", "nine", "eleven", "four", "many"),
    ("chairs", "rings", "boxes", "shoes", "desks", "lamps"),
)
FOLDERS = {"train": "train-clean-100", "valid": "dev-clean", "test": "test-clean"}
HELD_OUT = 0.1  # share of the sentences for valid; test gets the same share
CHAPTER = 100  # utterances per chapter

SLOT_VALUES = {
    "artist": ("Drake", "the Beatles", "Sade", "Vivaldi"),
    "service": ("Spotify", "Deezer", "iTunes"),
    "playlist": ("morning", "dinner", "workout"),
    "city": ("Boston", "Paris", "Denver", "Tokyo"),
    "timeRange": ("tonight", "tomorrow", "next Friday"),
    "party_size_number": ("two", "six", "nine"),
    "object_name": ("Moby Dick", "Hamlet", "Dune"),
    "rating_value": ("one", "four", "five"),
}
SLOT_PATTERNS = (
    ("PlayMusic", "play {artist} on {service}"),
    ("PlayMusic", "listen to {artist}"),
    ("AddToPlaylist", "add {artist} to my {playlist} list"),
    ("GetWeather", "what's the weather in {city} {timeRange}"),
    ("GetWeather", "how is the weather"),
    ("BookRestaurant", "book a table for {party_size_number} in {city}"),
    ("RateBook", "give {object_name} {rating_value} stars"),
    ("RateBook", "rate the book"),
)
# Audio SNIPS' speakers, with an espeak-ng variant for each. Train has only eight voices, so these
# variants are similar: their formants differ by at most a tenth.
SLOT_VOICES = {
    "train": {"Ivy": "m1", "Joanna": "m6", "Joey": "m4", "Justin": "paul", "Kendra": "quincy",
              "Kimberly": "Mike", "Matthew": "Nguyen", "Salli": "Alex"},
    "valid": {"Aditi": "m3", "Amy": "max", "Geraint": "pablo", "Nicole": "grandpa"},
    "test": {"Brian": "robert", "Emma": "Mr serious", "Raveena": "Storm", "Russell": "Mario"},
}  # fmt: skip


def intent_commands() -> list[tuple[str, str, str, str]]:
    """Return text, action, object and location of every command, in a fixed order.

    The 31 triples have four phrasings each (eight if they name a room).
    """
    commands = []
    for action, patterns, names, rooms in INTENTS:
        for name, room, pattern in product(names, rooms, patterns):
            texts = [pattern.format(name)]
            if room != "none":
                texts = [f"{texts[0]} in the {room}", pattern.format(f"{room} {name}")]
            commands += [(text, action, name, room) for text in texts]
    return commands


def sentences() -> list[str]:
    """Return every matrix sentence once, in a fixed order."""
    return [" ".join(words) for words in product(*COLUMNS)]


def slot_commands(intent: str, pattern: str) -> list[tuple[str, str]]:
    """Return each command of a pattern: the text, and IOB tags per word followed by the intent."""
    commands = []
    names = [word.strip("{}") if "{" in word else "" for word in pattern.split()]
    choices = [SLOT_VALUES.get(name, (word,)) for word, name in zip(pattern.split(), names)]
    for values in product(*choices):
        tags = []
        for name, value in zip(names, values):
            inside = [f"I-{name}"] * (len(value.split()) - 1)
            tags += [f"B-{name}", *inside] if name else ["O"]
        commands.append((" ".join(values), " ".join([*tags, intent])))
    return commands


def speak_intents(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write the csv and wav files of Fluent Speech Commands. All triples are equally frequent. So
    are the phrasings of a triple and the speakers of a split.
    """
    by_triple: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for command in intent_commands():
        by_triple.setdefault(command[1:], []).append(command)
    triples = list(by_triple.values())
    voices = speakers(seed)
    (out / "data").mkdir(parents=True)
    for index, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, 3, index))
        clips: Clips = {speaker: {} for speaker in voices[split]}
        with open(out / "data" / f"{split}_data.csv", "w", encoding="utf-8", newline="") as handle:
            table = csv.writer(handle, lineterminator="\n")
            table.writerow(INTENT_TABLE)
            for number, turn in enumerate(rng.permutation(count)):
                phrasings = triples[turn % len(triples)]
                command = phrasings[turn // len(triples) % len(phrasings)]
                speaker = voices[split][number % len(voices[split])]
                path = f"wavs/speakers/{speaker.name}/{split}-{number:05d}.wav"
                clips[speaker][path] = command[0]
                table.writerow([number, path, speaker.name, *command])
        speak(out, clips, (seed, 1), f"commands, {split}", workers)


def speak_sentences(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write the folders of LibriSpeech. No sentence is in two splits."""
    shuffled = np.random.default_rng((seed, 5)).permutation(sentences()).tolist()
    held_out = max(1, round(HELD_OUT * len(shuffled)))
    by_split = {
        "valid": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
        "train": shuffled[2 * held_out :],
    }
    reader = 0
    for split, voices in speakers(seed).items():
        clips: Clips = {speaker: {} for speaker in voices}
        transcripts: dict[str, list[str]] = {}
        for index, speaker in enumerate(voices):
            reader += 1
            for number, turn in enumerate(range(index, counts[split], len(voices))):
                chapter, line = divmod(number, CHAPTER)
                start = f"{reader}-{chapter + 1}"
                folder, name = f"{FOLDERS[split]}/{reader}/{chapter + 1}", f"{start}-{line:04d}"
                text = by_split[split][turn % len(by_split[split])]
                clips[speaker][f"{folder}/{name}.flac"] = text
                lines = transcripts.setdefault(f"{folder}/{start}.trans.txt", [])
                lines.append(f"{name} {text.upper()}\n")
        speak(out, clips, (seed, 4), f"sentences, {split}", workers)
        for path, lines in transcripts.items():
            (out / path).write_text("".join(lines), encoding="utf-8")


def speak_slots(out: Path, counts: dict[str, int], seed: int, workers: int) -> None:
    """Write the folders of Audio SNIPS. All patterns are equally frequent."""
    patterns = [slot_commands(*pattern) for pattern in SLOT_PATTERNS]
    lines = []
    for index, (split, voices) in enumerate(SLOT_VOICES.items()):
        rng = np.random.default_rng((seed, 7, index))
        clips: Clips = {}
        for name, variant in voices.items():
            pace, pitch = int(rng.integers(185, 216)), int(rng.integers(46, 55))
            clips[Speaker(name, f"{ACCENT}+{variant}", pace, pitch)] = {}
        for number in range(counts[split]):
            pattern = patterns[number % len(patterns)]
            text, tags = pattern[rng.integers(len(pattern))]
            speaker = list(clips)[rng.integers(len(clips))]
            name = f"{speaker.name}-snips-{split}-{number}"
            clips[speaker][f"{split}/{speaker.name}/{name}.wav"] = text
            lines.append(f"{name} BOS {text} EOS\tO {tags}\n")
        speak(out, clips, (seed, 6), f"commands, {split}", workers)
    slots = "".join(f"{name}\n" for name in ("O", *SLOT_VALUES))
    (out / "slots.txt").write_text(slots, encoding="utf-8")
    (out / "all.iob.snips.txt").write_text("".join(lines), encoding="utf-8")


CORPORA = {  # name -> function that writes it, flag for the utterances, default of the flag
    "fluent_commands": (speak_intents, "commands", [2000, 250, 600]),
    "librispeech": (speak_sentences, "sentences", [6000, 300, 400]),
    "audio_snips": (speak_slots, "commands", [5000, 300, 400]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--out", type=Path, required=True, help="parent folder of the corpora")
    flag("--corpora", nargs="+", choices=CORPORA, default=["fluent_commands"])
    for size in ("--commands", "--sentences"):
        flag(size, type=int, nargs=3, metavar=("TRAIN", "VALID", "TEST"), help="utterances")
    flag("--seed", type=int, default=1)
    flag("--workers", type=int, default=os.cpu_count(), help="processes; the output stays the same")
    args = parser.parse_args()
    counts = {name: getattr(args, CORPORA[name][1]) or CORPORA[name][2] for name in args.corpora}
    if args.seed < 0 or min(args.workers, *sum(counts.values(), [])) < 1:
        raise UserError("expected --seed 0 or more, and all other numbers at least 1")
    start = time.monotonic()
    for name, count in counts.items():
        with new_corpus(args.out / name, {"seed": args.seed, "utterances": count}) as folder:
            CORPORA[name][0](folder, dict(zip(SPLITS, count)), args.seed, args.workers)
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s; next: preprocess/runner.py --action generate_manifest")


if __name__ == "__main__":
    run(main)
