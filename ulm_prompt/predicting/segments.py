"""Pieces of a long recording: it is cut at pauses, and slid over where it has none.

A frame is sound when it is louder than the noise around it. A pause is a stretch without sound.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocess.speech2unit.audio import BadAudio, length_and_rate, mono_blocks, read_audio
from preprocess.speech2unit.features import SAMPLE_RATE

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
