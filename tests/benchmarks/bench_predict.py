"""Measure the speed and accuracy of predict.py, by default with the repository's prompt.

python -m tests.benchmarks predict, or
python -m tests.benchmarks.bench_predict [--prompt P --workspace W] [--clips N] FOLDER

Cold: one process per clip. Warm: one Python call per clip. Many: one process for N clips, without
the time to load. Long: the same clips in one recording, half a second apart, with --segments.
Right: clips answered with the name of their folder, alone and as segments of 60-clip recordings.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import soundfile

from tests.benchmarks.measure import timed
from tests.conftest import DATA, REPOSITORY
from tests.preprocess.corpora import write
from ulm_prompt.using.predictor import Predictor

CLIPS = DATA / "audio" / "speech_commands" / "speech_commands_test_set_v0.01"


def run_predict(args: argparse.Namespace, *inputs: object) -> tuple[float, str]:
    """Run predict.py. Return its seconds and the line in which it prints its speed."""
    command = [sys.executable, REPOSITORY / "ulm_prompt" / "predict.py", *inputs]
    command += ["--workspace", args.workspace, *(f"--prompt={name}" for name in args.prompt)]
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    seconds, result = timed(lambda: run(list(map(str, command))))
    return seconds, next(line for line in result.stderr.splitlines() if " per second, by " in line)


def print_rate(name: str, audio: float, args: argparse.Namespace, *inputs: object) -> None:
    """Print how many times faster than real time ``audio`` seconds are answered."""
    seconds, line = run_predict(args, *inputs)
    rate = audio / float(line.split(" in ")[1].split(" s,")[0])
    print(f"{name}   {rate:6.1f} times real time: {line} ({seconds:.1f} s with loading)")


def print_right(predictor: Predictor, clips: Sequence[Path]) -> None:
    """Print how many clips with a word the first task answers right, alone and in recordings."""
    task = next(iter(predictor.records))
    clips = [clip for clip in clips if clip.parent.name != "_silence_"]
    clips = [clips[index] for index in np.random.default_rng(0).permutation(len(clips))]
    labels = [clip.parent.name for clip in clips]
    waves = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    alone = [answers[task][0].names[0] for answers in predictor(waves)]
    shares = [f"{100 * np.mean(np.array(alone) == labels):.1f} % alone"]
    for gap in (1.0, 0.3, 0.0):
        right = missed = 0
        for first in range(0, len(waves), 60):
            parts = [part for wave in waves[first : first + 60]
                     for part in (np.zeros(int(gap * 16_000), np.float32), wave)]  # fmt: skip
            ends = np.cumsum([len(part) / 16_000 for part in parts])
            segments = list(predictor.segments(np.concatenate(parts)))
            for start, end, label in zip(ends[::2], ends[1::2], labels[first:]):
                names = [segment.answers[task][0].names[0] for segment in segments
                         if start <= (segment.start + segment.end) / 2 <= end]  # fmt: skip
                missed += not names
                right += label in names
        shares.append(
            f"{100 * right / len(waves):.1f} % {gap} s apart ({missed} words are in no segment)"
        )
    print(f"right of {len(waves)} clips with a word: {'; '.join(shares)}")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CLIPS)
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--workspace", type=Path, default=REPOSITORY)
    parser.add_argument("--clips", type=int, default=500)
    args = parser.parse_args(arguments)
    clips = sorted(args.folder.rglob("*.wav"))
    if not clips:
        sys.exit(f"error: no wav files in {args.folder}; name a folder")
    count = min(args.clips, len(clips))
    clips = [clips[number * len(clips) // count] for number in range(count)]
    audio = sum(soundfile.info(clip).duration for clip in clips)
    cold = median(run_predict(args, clips[0])[0] for _ in range(3))
    print(f"cold   {cold:6.2f} s from the command to the answer to one clip (median of 3)")
    predictor = Predictor.load(args.prompt, args.workspace)
    warm_clips = [*clips[:5], *clips[:100]]  # the first five only warm up
    seconds = [timed(lambda clip=clip: predictor([clip]))[0] for clip in warm_clips][5:]
    low, middle, high = np.percentile(seconds, [5, 50, 95]) * 1000
    print(f"warm   {middle:6.1f} ms per clip (median of 100; 5 to 95 %: {low:.1f} to {high:.1f})")
    with tempfile.TemporaryDirectory() as many, tempfile.TemporaryDirectory() as long:
        for number, clip in enumerate(clips):
            (Path(many) / f"{number}.wav").symlink_to(clip.resolve())
        parts = [part for clip in clips for part in (np.zeros(8000), soundfile.read(clip)[0])]
        write(Path(long) / "long.wav", np.concatenate(parts))
        print_rate("many", audio, args, many)
        print_rate("long", audio + 0.5 * len(clips), args, "--segments", long)
    print_right(predictor, clips)


if __name__ == "__main__":
    main(sys.argv[1:])
