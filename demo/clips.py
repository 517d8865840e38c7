"""Unpack the demo's real keyword clips, in the folder layout of Speech Commands v0.01.

python demo/clips.py --out demo/workspace/corpora

demo/speech_commands/ holds them, with their licence: all clips of a folder end to end in one Opus
file, in the order of clips.csv. ``--from CORPUS`` made these files.
"""

from __future__ import annotations

import argparse
import csv
import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

if not __package__:  # called as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import soundfile

from demo.voices import SAMPLE_RATE, new_corpus, write_audio
from pipeline.errors import UserError, run
from pipeline.files import replacing
from preprocess.speech_commands.preprocessor import (
    NOISE_FOLDER,
    TEST_FOLDER,
    TRAIN_FOLDER,
    which_split,
)

PACKED = Path(__file__).resolve().parent / "speech_commands"
INDEX = "clips.csv"
COMPRESSION = 0.97  # on libsndfile's scale: 6,000 + (1 - 0.97) * 250,000 = 13,500 bits a second


class Clip(NamedTuple):
    """A line of the index: one wav file of the corpus and its length."""

    folder: str  # speech_commands_v0.01/yes
    name: str  # a6d586b7_nohash_4.wav: the speaker, and which repetition
    samples: int


def main() -> None:
    """Unpack, or pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="unpack into this folder")
    action.add_argument("--from", dest="corpus", type=Path, help="pack this corpus folder")
    arguments = parser.parse_args()
    if arguments.corpus:
        pack(arguments.corpus, PACKED)
    else:
        unpack(PACKED, arguments.out / "speech_commands")


def pack(corpus: Path, packed: Path) -> None:
    """Write every folder's clips to one Opus file, and the index.

    A clip of neither split is left out (``which_split``); test speakers are among these.
    """
    paths = sorted(corpus.glob(f"{TRAIN_FOLDER}/*/*.wav"))
    noise = corpus / NOISE_FOLDER
    kept = [path for path in paths if path.parent == noise or which_split(path.name)]
    print(f"{corpus}: {len(paths) - len(kept)} clips are in neither train nor valid: left out")
    kept += sorted(corpus.glob(f"{TEST_FOLDER}/*/*.wav"))
    if not kept:
        raise UserError(f"{corpus}: expected {TRAIN_FOLDER}/ and {TEST_FOLDER}/, found no wav file")
    clips, size = [], 0
    for folder, group in groupby(kept, lambda path: path.parent):
        waveforms = {path.name: _read(path) for path in group}
        name = str(folder.relative_to(corpus))
        clips += [Clip(name, clip, len(samples)) for clip, samples in waveforms.items()]
        target = packed / f"{name}.opus"
        target.parent.mkdir(parents=True, exist_ok=True)
        samples = np.concatenate(list(waveforms.values()))
        with replacing(target) as temporary, open(temporary, "wb") as handle:
            soundfile.write(
                handle, samples, SAMPLE_RATE, "OPUS", format="OGG", compression_level=COMPRESSION
            )
        size += target.stat().st_size
    lines = [",".join(map(str, line)) + "\n" for line in (Clip._fields, *clips)]
    with replacing(packed / INDEX) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    print(f"wrote {packed}: {len(clips)} clips, {size:,} bytes of Opus")


def unpack(packed: Path, corpus: Path) -> None:
    """Write every clip of the index as a wav file under ``corpus``."""
    with open(packed / INDEX, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    clips = [Clip(row["folder"], row["name"], int(row["samples"])) for row in rows]
    with new_corpus(corpus, {"clips": len(clips)}) as unfinished:
        for folder, group in groupby(clips, lambda clip: clip.folder):
            (unfinished / folder).mkdir(parents=True)
            with soundfile.SoundFile(packed / f"{folder}.opus") as file:
                for clip in group:
                    samples = file.read(clip.samples, dtype="float32")
                    if len(samples) < clip.samples:
                        missing = f"ends before {clip.name}, which {INDEX} names"
                        raise UserError(f"{file.name}: {missing}; restore both from git")
                    write_audio(unfinished / folder / clip.name, samples)


def _read(path: Path) -> np.ndarray:
    """Return a clip as (T,) float32."""
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise UserError(f"{path}: expected {SAMPLE_RATE} Hz and one channel, found {rate} Hz")
    return samples


if __name__ == "__main__":
    run(main)
