"""The audio that a command line names, as a stream: files, folders, and lists on standard input."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from preprocess.speech2unit.audio import BadAudio, length_and_rate, mono_blocks, read_audio
from preprocess.speech2unit.features import SAMPLE_RATE

STDIN = "-"


def check_sources(words: Sequence[str]) -> list[str]:
    """The files and folders named, ``-`` for a list on standard input, which is also what nothing
    means when something is piped in.

    Raises ``UserError`` for a name that is not there, or nothing at all.
    """
    words = list(words)
    if not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("no audio: name files or folders, or pipe in a list of them")
        words = [STDIN]
    if words.count(STDIN) > 1:
        raise UserError("-: standard input can be read once")
    for word in words:
        if word != STDIN and not Path(word).exists():
            raise UserError(f"{word}: no such file or folder")
        if word != STDIN and Path(word).is_dir() and next(files_in(Path(word)), None) is None:
            raise UserError(f"{word}: no files in this folder, but for hidden ones")
    return words


def count_files(words: Sequence[str]) -> int | None:
    """How many files there will be; None while a list is still to be read."""
    if STDIN in words:
        return None
    return sum(sum(1 for _ in _files(word)) for word in words)


def stream(words: Sequence[str]) -> Iterator[Path]:
    """Every file, in the order of ``words``; a folder's by name. Nothing is kept."""
    for word in words:
        yield from _files(word)


def _files(word: str) -> Iterator[Path]:
    if word == STDIN:
        # not sys.stdin: leaving while a thread waits in it ends with a "fatal error"
        with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as lines:
            yield from (Path(line.rstrip("\r\n")) for line in lines if line.strip())
    elif Path(word).is_dir():
        yield from files_in(Path(word))
    else:
        yield Path(word)


def files_in(folder: Path) -> Iterator[Path]:
    """The files under ``folder``, by name, hidden ones left out. Reading tells which are audio: a
    name does not.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(root) / name


def as_they_arrive(paths: Iterable[Path], most: int) -> Iterator[list[Path]]:
    """Batches of what is there, at most ``most``: the first path is not kept waiting for others.

    A thread reads ahead by two batches. An error of ``paths`` is raised here.
    """
    arrived: queue.Queue[Path | BaseException | None] = queue.Queue(2 * most)

    def read() -> None:
        try:
            for path in paths:
                arrived.put(path)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [arrived.get()]
        while len(batch) < most and isinstance(batch[-1], Path) and not arrived.empty():
            batch.append(arrived.get())
        last = batch[-1]
        good = batch if isinstance(last, Path) else batch[:-1]
        if good:
            yield good
        if last is None:
            return
        if isinstance(last, BaseException):
            raise last


# Pieces of a long recording: it is cut at pauses, and slid over where it has none. A frame is
# sound when it is louder than the noise around it. A pause is a stretch without sound.


FRAME = 0.01  # s: one period of a low voice, so that a level does not ripple
SMOOTH = 3  # frames of a mean power: white noise then varies by less than 2 dB
SILENT = 1e-8  # power, -80 dB of full scale: rounding and dither are no sound
NEAR = 10.0  # s of one noise floor, which comes from them and 10 s before or after: noise changes
QUIET_SHARE = 10  # % of those frames lie below the noise floor: speech has that much pause
ABOVE = 10.0  # dB over the noise floor: steady noise never rises so far, a spoken word does
RANGE = 40.0  # dB under the loudest frame: breath and echo of a clean recording are no sound
PAUSE = 0.25  # s without sound: the closure inside "stop" or "eight" is shorter
LEAST = 0.1  # s with sound: shorter ones are clicks
LONGEST = 2.0  # s of one piece: a slow word; a longer piece is slid over
AROUND = 0.25  # s that are heard before and after: weak first and last consonants


class Piece(NamedTuple):
    """A piece of a recording. ``start`` and ``end`` of its sound are in seconds; samples ``first``
    to ``last``, at the recording's own rate, are what a prompt hears.
    """

    start: float
    end: float
    first: int
    last: int


def find_pieces(audio: Path | np.ndarray, longest: float = LONGEST) -> list[Piece]:
    """The pieces of a file, or of a waveform (T,) at 16 kHz, in order. A file is read in blocks:
    four bytes a frame are kept.

    Sound of more than ``longest`` seconds without a pause becomes windows of half that length,
    which overlap by half. Raises ``BadAudio``, also where no sound rises above the noise floor.
    """
    if isinstance(audio, Path):
        _, rate = length_and_rate(audio, at_once=False)
        hop = round(rate * FRAME)
        blocks = mono_blocks(audio, 1000 * hop)
    else:
        rate, hop, blocks = SAMPLE_RATE, round(SAMPLE_RATE * FRAME), [audio]
    total, powers = 0, []
    for samples in blocks:  # (T,)
        if not np.isfinite(samples).all():
            raise BadAudio("holds values that are not finite (NaN or infinity)")
        total += len(samples)
        whole = samples[: len(samples) // hop * hop]
        powers.append(whole.reshape(-1, hop).var(axis=1, dtype=np.float32))  # without the offset
    if total < hop:
        raise BadAudio(f"is shorter than {1000 * FRAME:.0f} ms")
    levels = _levels(np.concatenate(powers))
    runs = _runs(levels > _thresholds(levels, hop / rate)) * (hop / rate)
    pieces = _cut(runs, total / rate, longest)
    if not pieces:
        raise BadAudio("holds no sound that rises above its noise floor")
    return [Piece(*times[:2], *(round(time * rate) for time in times[2:])) for times in pieces]


def samples_of(audio: Path | np.ndarray, piece: Piece) -> np.ndarray:
    """What a prompt hears of a piece: (T,) float32 at 16 kHz. Raises ``BadAudio``."""
    if isinstance(audio, Path):
        return read_audio(audio, piece.first, piece.last - piece.first).samples
    return audio[piece.first : piece.last]


def _levels(powers: np.ndarray) -> np.ndarray:
    """Map the power of frames (F,) to their smoothed level (F,), dB of full scale."""
    padded = np.pad(powers, SMOOTH // 2, mode="edge")
    mean = np.convolve(padded, np.full(SMOOTH, 1 / SMOOTH), "valid")
    return 10 * np.log10(np.maximum(mean, SILENT))


def _thresholds(levels: np.ndarray, hop: float) -> np.ndarray:
    """The level above which a frame is sound, (F,), for levels (F,) every ``hop`` seconds."""
    near = round(NEAR / hop)
    pairs = [  # the floor of block i and block i + 1
        np.percentile(levels[start : start + 2 * near], QUIET_SHARE)
        for start in range(0, max(1, len(levels) - near), near)
    ]
    floors = np.maximum([pairs[0], *pairs], [*pairs, pairs[-1]])  # of block i, with either side
    floor = np.repeat(floors, near)[: len(levels)]
    return np.maximum(floor + ABOVE, levels.max() - RANGE)


def _runs(is_sound: np.ndarray) -> np.ndarray:
    """First frames of the sounds and first frames after them, (runs, 2), of a mask (F,)."""
    edges = np.diff(is_sound.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _cut(runs: np.ndarray, seconds: float, longest: float) -> list[tuple[float, ...]]:
    """Start and end of each piece and of what is heard of it, in seconds."""
    sounds: list[list[float]] = []
    for start, end in runs:
        if sounds and start - sounds[-1][1] < PAUSE:
            sounds[-1][1] = end
        else:
            sounds.append([start, end])
    sounds = [[start, end] for start, end in sounds if end - start >= LEAST]
    edges = [0.0, *((one[1] + two[0]) / 2 for one, two in zip(sounds, sounds[1:])), seconds]
    pieces = []
    for (start, end), earliest, latest in zip(sounds, edges, edges[1:]):
        length = end - start if end - start <= longest else longest / 2
        count = 1 + int(np.ceil((end - start - length) / (length / 2)))
        for begin in np.linspace(start, end - length, count):
            heard = max(earliest, begin - AROUND), min(latest, begin + length + AROUND)
            pieces.append((float(begin), float(begin + length), *heard))
    return pieces
