"""Unpack the demo's real keyword clips, in the folder layout of Speech Commands v0.01.

python demo/clips.py --out demo/workspace/corpora

demo/speech_commands/ contains the clips and their licence. Each Opus file contains all clips of one
folder, end to end, in the order of clips.csv. ``--from CORPUS`` created these files.
"""

from __future__ import annotations

import argparse
import csv
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

from demo.speaking import SAMPLE_RATE, new_corpus, write_audio
from pipeline.errors import UserError, run
from pipeline.files import replacing, writing
from preprocess.speech_commands import preprocessor as layout

PACKED = Path(__file__).resolve().parent / "speech_commands"
INDEX = "clips.csv"
COMPRESSION = 0.97  # on libsndfile's scale: 6,000 + (1 - 0.97) * 250,000 = 13,500 bit/s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="unpack into this folder")
    action.add_argument("--from", dest="corpus", type=Path, help="pack this corpus folder")
    args = parser.parse_args()
    if args.corpus:
        pack(args.corpus, PACKED)
    else:
        unpack(PACKED, args.out / "speech_commands")


def pack(corpus: Path, packed: Path) -> None:
    """Write one Opus file per folder of clips, and the index.

    Clips in neither train nor valid (``which_split``) are skipped. Some are by test speakers.
    """
    paths = sorted(corpus.glob(f"{layout.TRAIN_FOLDER}/*/*.wav"))
    noise = corpus / layout.NOISE_FOLDER
    kept = [path for path in paths if path.parent == noise or layout.which_split(path.name)]
    print(f"{corpus}: skipped {len(paths) - len(kept)} clips that are in neither train nor valid")
    kept += sorted(corpus.glob(f"{layout.TEST_FOLDER}/*/*.wav"))
    if not kept:
        raise UserError(f"{corpus}: expected the folders of v0.01, found no wav file")
    clips = [("folder", "name", "samples")]
    for folder, group in groupby(kept, lambda path: path.parent):
        waveforms = {path.name: _read(path) for path in group}
        name = str(folder.relative_to(corpus))
        clips += [(name, clip, len(samples)) for clip, samples in waveforms.items()]
        target = packed / f"{name}.opus"
        target.parent.mkdir(parents=True, exist_ok=True)
        samples = np.concatenate(list(waveforms.values()))
        with replacing(target) as temporary, open(temporary, "wb") as handle:
            soundfile.write(
                handle, samples, SAMPLE_RATE, "OPUS", format="OGG", compression_level=COMPRESSION
            )
    with writing(packed / INDEX) as handle:
        csv.writer(handle, lineterminator="\n").writerows(clips)
    print(f"wrote {packed}: {len(clips) - 1} clips")


def unpack(packed: Path, corpus: Path) -> None:
    """Write every clip of the index as a wav file under ``corpus``."""
    with open(packed / INDEX, encoding="utf-8", newline="") as handle:
        _, *clips = csv.reader(handle)
    with new_corpus(corpus, {"clips": len(clips)}) as unfinished:
        for folder, group in groupby(clips, lambda clip: clip[0]):
            (unfinished / folder).mkdir(parents=True)
            with soundfile.SoundFile(packed / f"{folder}.opus") as file:
                for _, name, length in group:
                    samples = file.read(int(length), dtype="float32")
                    if len(samples) < int(length):
                        reason = f"ends before {name}, which {INDEX} lists"
                        raise UserError(f"{file.name}: {reason}; restore both files from git")
                    write_audio(unfinished / folder / name, samples)


def _read(path: Path) -> np.ndarray:
    """Return a clip as (T,) float32."""
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise UserError(f"{path}: expected {SAMPLE_RATE} Hz and one channel, found {rate} Hz")
    return samples


if __name__ == "__main__":
    run(main)
